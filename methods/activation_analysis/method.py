"""The declaration of `activation_analysis`, and the views and figures of its finished runs. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.activation_analysis.schema import (
    ActivationAnalysisParams,
    ActivationAnalysisResult,
    LabelRow,
    PositionRow,
    WordRow,
)
from diffing_mcp.methods.contract import CorpusMethod, Figure, by_name, view
from diffing_mcp.methods.directions.vectors import ResidualVector
from diffing_mcp.methods.examples.views import examples
from diffing_mcp.methods.views.figures import figure, log_histogram, trace
from diffing_mcp.methods.views.pages import PageView, SearchedPageParams, ViewParams, page_size
from diffing_mcp.methods.views.rows import grouped, held, highest_first, layers_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffing_mcp.methods.activation_analysis.measure import ActivationAnalysisAccumulator
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus


_LAYER = Field(None, description="Absolute layer; None: the first one of the run.")


class TokensParams(SearchedPageParams):
    """Which words."""

    layer: int | None = _LAYER
    order: Literal["z", "relative_difference", "norm_difference", "cosine_distance", "count"] = "z"
    content_only: bool = Field(True, description="Only words that can name a topic.")
    min_documents: int = Field(3, ge=1, le=100_000, description="Texts that hold the word, at least.")
    limit: int = page_size(20, 200)


class TokensView(PageView[WordRow]):
    """Words of one layer."""

    layer: int

    def as_text(self) -> str:
        return "\n".join([f"layer {self.layer}, {self.total} words", *(row.as_text() for row in self.rows)])


@view("Words with their mean scores, by z or by a score.", TokensParams)
def tokens(record: RunRecord, params: TokensParams) -> TokensView:
    layer = held(record, "layer", params.layer, layers_of(record))
    rows = record.rows("words", layer=layer, content=params.content_only or None)
    rows = highest_first([row for row in rows if row["documents"] >= params.min_documents], params.order)
    return TokensView.of(rows, params, searched=("word",), layer=layer)


class PositionsParams(ViewParams):
    """Which positions."""

    layer: int | None = _LAYER
    limit: int = Field(16, ge=1, le=2048, description="Positions, from 0.")


class PositionsView(BaseModel):
    """Medians at each position, and mean differences by position and special token."""

    layer: int
    rows: list[PositionRow]
    labels: list[LabelRow]


@view("Scores by position; mean differences by position and special token.", PositionsParams)
def positions(record: RunRecord, params: PositionsParams) -> PositionsView:
    layer = held(record, "layer", params.layer, layers_of(record))
    return PositionsView(
        layer=layer,
        rows=[PositionRow(**row) for row in record.rows("profile", layer=layer)[: params.limit]],
        labels=[LabelRow(**row) for row in record.rows("labels", layer=layer)],
    )


def positions_figure(record: RunRecord) -> dict[str, Any]:
    """Median norm of the difference at each position, one line a layer."""
    by_layer = grouped(record.rows("profile", ["layer", "position", "norm_difference"]), "layer")
    return figure(
        [trace("line", rows, f"layer {layer}", x="position", y="norm_difference") for layer, rows in by_layer.items()],
        x="position",
        y="median norm of the difference",
        title="Norm of the difference by position and layer",
    )


def histogram_figure(record: RunRecord) -> dict[str, Any]:
    """Counts of tokens over the logarithm of their relative difference; attention sinks are left out."""
    stored = {
        layer: [record.array(f"histogram.{layer}.{part}") for part in ("edges", "counts", "zeros")]
        for layer in layers_of(record)
    }
    zeros = sum(int(parts[2][0]) for parts in stored.values())
    return figure(
        [log_histogram(f"layer {layer}", edges, counts) for layer, (edges, counts, _) in stored.items()],
        x={"title": "relative difference", "type": "log"},
        y="tokens",
        title=f"Relative difference per token ({zeros} exactly 0)",
    )


class ActivationAnalysis(CorpusMethod[ActivationAnalysisParams, ActivationAnalysisResult]):
    """How far the two models' activations are apart, token by token, on a text corpus: norm of the difference, relative
    difference, cosine distance and both norms, summarised robustly with attention sinks named and left out; words
    whose activations differ far more than is usual at their positions; mean differences by position and special
    token; max-activating examples of every score.
    """

    name = "activation_analysis"
    title = "Activation analysis"
    for_agents = (
        "Use it to find triggers: words or contexts on which alone the finetuned model thinks differently. Size "
        "alone is no evidence: as a verdict on unrelated text it is no better than chance. Mean differences serve "
        "as vectors (RUN/LAYER:LABEL:difference). Reads stored `activations` too."
    )
    Params = ActivationAnalysisParams
    Result = ActivationAnalysisResult
    views = by_name(tokens, examples, positions)
    figures = (
        Figure("positions", "Norm of the difference by position", positions_figure),
        Figure("histogram", "Relative difference per token", histogram_figure),
    )

    def accumulator(
        self, pair: LoadedPair, params: ActivationAnalysisParams, corpus: TokenizedCorpus
    ) -> ActivationAnalysisAccumulator:
        from diffing_mcp.methods.activation_analysis.measure import ActivationAnalysisAccumulator, special_labels
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
        return [row["vector"] for row in record.rows("labels") if row["mean_difference_norm"] > 0]

    def vector(self, record: RunRecord, name: str) -> ResidualVector:
        """A mean difference of the run; strength 1 is the mean norm of the finetuned side's activations at that layer,
        first positions left out.

        Raises:
            InvalidInput: not of the form LAYER:LABEL:difference.
            UnknownName: a layer or label that the run does not hold.
        """
        layers = layers_of(record)
        number, _, rest = name.partition(":")
        label, _, source = rest.rpartition(":")
        if not number.isdigit() or source != "difference":
            raise InvalidInput(
                f"{name!r} is not of the form LAYER:LABEL:difference, for instance {layers[0]}:all:difference."
            )
        layer = held(record, "layer", int(number), layers)
        labels: list[str] = record.manifest.notes["labels"]
        held(record, "label", label, labels)
        place = layers.index(layer)
        norms = record.array("norm_finetuned")[place]
        scale = norms[labels.index("all")] or norms[norms > 0].min(initial=np.inf)
        values = record.array("mean_difference")[place, labels.index(label)].astype(np.float32)
        strength = float(scale) if np.isfinite(scale) else 1.0
        return ResidualVector(values, layer, strength, f"mean difference at {label}, layer {layer}")
