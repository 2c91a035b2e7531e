"""Declaration of the activation analysis. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from diffing_mcp.methods.activation_analysis import views
from diffing_mcp.methods.activation_analysis.schema import ActivationAnalysisParams, ActivationAnalysisResult
from diffing_mcp.methods.activation_analysis.views import histogram_figure, positions_figure
from diffing_mcp.methods.contract import CorpusMethod, Cost, Figure, View
from diffing_mcp.methods.examples.views import EXAMPLES_VIEW
from diffing_mcp.methods.results import MethodResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.methods.activation_analysis.token_scores import ActivationAnalysisAccumulator
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.directions.vectors import ResidualVector
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus


class ActivationAnalysis(CorpusMethod[ActivationAnalysisParams, ActivationAnalysisResult]):
    """How far the two models' activations are apart, token by token, on a text corpus: norm of the difference, relative
    difference, cosine distance and both norms, summarised robustly with attention sinks named and left out; words
    whose activations differ far more than is usual at their positions; mean differences by position and special
    token; max-activating examples of every score.
    """

    name: ClassVar[str] = "activation_analysis"
    title: ClassVar[str] = "Activation analysis"
    for_agents: ClassVar[str] = (
        "How far the two models' activations are apart, token by token, on a text corpus: norm of the difference, "
        "relative difference, cosine distance and both norms, summarised robustly with attention sinks named and "
        "left out; words whose activations differ far more than is usual at their positions; mean differences by "
        "position and special token; max-activating examples of every score. Use it to find triggers: words or "
        "contexts on which alone the finetuned model thinks differently. Size alone is no evidence. Mean "
        "differences serve as vectors (RUN/LAYER:LABEL:difference). Reads stored `activations` too."
    )
    version: ClassVar[int] = 1
    Params: ClassVar[type[BaseModel]] = ActivationAnalysisParams
    Result: ClassVar[type[MethodResult]] = ActivationAnalysisResult
    cost: ClassVar[Cost] = "minutes"
    views: ClassVar[Mapping[str, View]] = {
        "tokens": View("tokens", "Words with their mean scores, by z or by a score.", views.TokensParams, views.tokens),
        "examples": EXAMPLES_VIEW,
        "positions": View(
            "positions",
            "Scores by position; mean differences by position and special token.",
            views.PositionsParams,
            views.positions,
        ),
    }
    figures: ClassVar[Sequence[Figure]] = (
        Figure("positions", "Norm of the difference by position", positions_figure),
        Figure("histogram", "Relative difference per token", histogram_figure),
    )

    def accumulator(
        self, pair: LoadedPair, params: ActivationAnalysisParams, corpus: TokenizedCorpus
    ) -> ActivationAnalysisAccumulator:
        from diffing_mcp.methods.activation_analysis.token_scores import ActivationAnalysisAccumulator, special_labels
        from diffing_mcp.model_pairs.layers import resolve_layers

        layers = tuple(reference.absolute for reference in resolve_layers(params.layers, pair.num_layers))
        labels = special_labels(corpus, pair.tokenizer)
        return ActivationAnalysisAccumulator(
            layers, corpus, labels, corpus.before_answer, pair.d_model, str(pair.device)
        )

    def summarise(
        self, accumulator: Any, pair: LoadedPair, params: ActivationAnalysisParams, run: RunWriter
    ) -> ActivationAnalysisResult:
        from diffing_mcp.methods.activation_analysis.measure import summarise

        return summarise(accumulator, pair, params, run)

    def vector_names(self, record: RunRecord) -> Sequence[str]:
        return [row["vector"] for row in record.table("labels").to_pylist() if row["mean_difference_norm"] > 0]

    def vector(self, record: RunRecord, name: str) -> ResidualVector:
        return views.read_vector(record, name)
