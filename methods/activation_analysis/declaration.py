"""Declaration of the activation analysis: parameters, result, views and figures. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, Field

from diffing_mcp.methods.activation_analysis import figures, views
from diffing_mcp.methods.activation_analysis.rows import LabelRow, SinkRow, Summary, WordRow
from diffing_mcp.methods.contract import CorpusMethod, Cost, Figure, HiddenStatesParams, MethodResult, View
from diffing_mcp.methods.examples.views import EXAMPLES_VIEW, ExampleRow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.methods.activation_analysis.accumulator import ActivationAnalysisAccumulator
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.directions.vectors import ResidualVector
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus


class ActivationAnalysisParams(HiddenStatesParams):
    """Parameters of `activation_analysis`, with those of the corpus."""

    layers: tuple[int | float, ...] = Field(
        (0.5,),
        min_length=1,
        max_length=64,
        description="Relative depths in [0, 1] (floats) or absolute layers (integers).",
    )
    examples: int = Field(20, ge=1, le=200, description="Examples kept of every score, layer and quantile bin.")


class ActivationAnalysisResult(MethodResult):
    """How far the activations are apart, and on which words."""

    identical: bool = Field(description="Whether every activation is exactly the same in both models.")
    tokens: int
    samples: int
    position_origin: str = Field(description="What position 0 is.")
    stored: str | None = Field(
        None, description="Stored activations that were read, and what they leave out; None: a corpus."
    )
    summaries: list[Summary] = Field(
        description="Scores by layer. relative_difference = |ft - base| / (|ft| + |base|), in [0, 1]."
    )
    sinks: list[SinkRow] = Field(
        description="Attention sinks, by token: left out of everything else but the profile and the labels."
    )
    standing_words: list[WordRow] = Field(description="Words that differ far more than others do.")
    words: list[WordRow] = Field(description="Content words of highest z, whether they stand out or not.")
    labels: list[LabelRow] = Field(
        description="Mean differences at the first positions, at special tokens, and over all later positions."
    )
    examples: list[ExampleRow] = Field(description="Tokens of highest relative difference, one a text.")

    def as_text(self) -> str:
        lines = [self.headline, f"tokens {self.tokens}, texts {self.samples}; position 0 = {self.position_origin}"]
        if self.stored:
            lines.append(f"read from {self.stored}")
        lines.append("layer score: median±spread trimmed_mean p95 p99 max")
        lines += [
            (
                f"{row.layer} {row.score}: {row.median:.3g}±{row.spread:.2g} {row.trimmed_mean:.3g} {row.p95:.3g} "
                f"{row.p99:.3g} {row.max:.3g}"
            )
            for row in self.summaries[:12]
        ]
        if self.sinks:
            lines.append(
                "attention sinks, left out: "
                + "; ".join(f"layer {row.layer} {row.as_text()}" for row in self.sinks[:6])
            )
        for name, rows in (
            ("words that stand out", self.standing_words),
            ("content words of highest z (layer)", self.words),
        ):
            if rows:
                lines.append(f"{name}:")
                lines += [f"{row.as_text()} ({row.layer})" for row in rows]
        if not self.identical:
            lines.append("mean difference by position or special token: layer:label |mean diff|/|act| coherence count")
            lines.append(
                "  "
                + "; ".join(
                    f"{row.layer}:{row.label} {row.relative_norm:.2g} {row.coherence or 0:.2g} {row.count}"
                    for row in self.labels[:40]
                )
            )
        if self.examples:
            lines.append("tokens of highest relative difference:")
            lines += [row.as_text() for row in self.examples[:8]]
        return "\n".join(lines)


class ActivationAnalysis(CorpusMethod[ActivationAnalysisParams, ActivationAnalysisResult]):
    """How far the two models' activations are apart, token by token, on a text corpus: norm of the difference, relative
    difference, cosine distance and both norms, summarised robustly with attention sinks named and left out; words whose
    activations differ far more than is usual at their positions; mean differences by position and special token;
    max-activating examples of every score. Use it to find triggers: words or contexts on which alone the finetuned
    model thinks differently. Size alone is no evidence. Mean differences serve as vectors (RUN/LAYER:LABEL:difference).
    Reads stored `activations` too."""

    name: ClassVar[str] = "activation_analysis"
    title: ClassVar[str] = "Activation analysis"
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
        Figure("positions", "Norm of the difference by position", figures.positions),
        Figure("histogram", "Relative difference per token", figures.histogram),
    )

    def accumulator(
        self, pair: LoadedPair, params: ActivationAnalysisParams, corpus: TokenizedCorpus
    ) -> ActivationAnalysisAccumulator:
        from diffing_mcp.methods.activation_analysis.accumulator import ActivationAnalysisAccumulator, special_labels
        from diffing_mcp.model_pairs.layers import resolve_layers

        layers = tuple(reference.absolute for reference in resolve_layers(params.layers, pair.num_layers))
        labels = special_labels(corpus, pair.tokenizer)
        return ActivationAnalysisAccumulator(
            layers, corpus, labels, corpus.before_answer, pair.d_model, str(pair.device)
        )

    def summarise(
        self, accumulator: Any, pair: LoadedPair, params: ActivationAnalysisParams, run: RunWriter
    ) -> ActivationAnalysisResult:
        from diffing_mcp.methods.activation_analysis.summary import summarise

        return summarise(accumulator, pair, params, run)

    def vector_names(self, record: RunRecord) -> Sequence[str]:
        return [row["vector"] for row in record.table("labels").to_pylist() if row["mean_difference_norm"] > 0]

    def vector(self, record: RunRecord, name: str) -> ResidualVector:
        return views.read_vector(record, name)
