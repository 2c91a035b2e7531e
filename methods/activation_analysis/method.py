"""The declaration of `activation_analysis`, and the views and figures of its finished runs. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.methods.activation_analysis.schema import (
    ActivationAnalysisParams,
    ActivationAnalysisResult,
    LabelRow,
    PositionRow,
    WordRow,
)
from diffing_mcp.methods.contract import CorpusMethod, Cost, Figure, View
from diffing_mcp.methods.directions.vectors import ResidualVector
from diffing_mcp.methods.examples.views import EXAMPLES_VIEW
from diffing_mcp.methods.results import MethodResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.methods.activation_analysis.measure import ActivationAnalysisAccumulator
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus


class _Layer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    layer: int | None = Field(None, description="Absolute layer; None: the first one of the run.")


class TokensParams(_Layer):
    """Parameters of the view `tokens`."""

    order: Literal["z", "relative_difference", "norm_difference", "cosine_distance", "count"] = "z"
    content_only: bool = Field(True, description="Only words that can name a topic.")
    min_documents: int = Field(3, ge=1, le=100_000, description="Texts that hold the word, at least.")
    contains: str | None = Field(None, max_length=100, description="Only words that contain this.")
    limit: int = Field(20, ge=1, le=200)
    offset: int = Field(0, ge=0)


class TokensView(BaseModel):
    """Words of one layer."""

    layer: int
    total: int
    rows: list[WordRow]

    def as_text(self) -> str:
        return "\n".join([f"layer {self.layer}, {self.total} words", *(row.as_text() for row in self.rows)])


class PositionsParams(_Layer):
    """Parameters of the view `positions`."""

    limit: int = Field(16, ge=1, le=2048, description="Positions, from 0.")


class PositionsView(BaseModel):
    """Medians at each position, and mean differences by position and special token."""

    layer: int
    rows: list[PositionRow]
    labels: list[LabelRow]


def _layer(record: RunRecord, layer: int | None) -> int:
    layers = [int(known) for known in record.array("layers")]
    if layer is None:
        return layers[0]
    if layer not in layers:
        raise UnknownName(
            f"Run {record.id} holds no layer {layer}; layers: {', '.join(map(str, layers))}. Run the method again with "
            f"layers=[{layer}]."
        )
    return layer


def tokens(record: RunRecord, params: TokensParams) -> TokensView:
    """See `ActivationAnalysis.views`."""
    layer = _layer(record, params.layer)
    rows = [WordRow.model_validate(row) for row in record.table("words").to_pylist() if row["layer"] == layer]
    wanted = (params.contains or "").casefold()
    rows = [
        row
        for row in rows
        if row.documents >= params.min_documents
        and (row.content or not params.content_only)
        and wanted in row.word.casefold()
    ]
    rows.sort(key=lambda row: -_order(row, params.order))
    return TokensView(layer=layer, total=len(rows), rows=rows[params.offset : params.offset + params.limit])


def _order(row: WordRow, order: str) -> float:
    value = getattr(row, order)
    return float("-inf") if value is None else float(value)


def positions(record: RunRecord, params: PositionsParams) -> PositionsView:
    """See `ActivationAnalysis.views`."""
    layer = _layer(record, params.layer)
    rows = [row for row in record.table("profile").to_pylist() if row["layer"] == layer][: params.limit]
    labels = [row for row in record.table("labels").to_pylist() if row["layer"] == layer]
    return PositionsView(
        layer=layer,
        rows=[PositionRow.model_validate(row) for row in rows],
        labels=[LabelRow.model_validate(row) for row in labels],
    )


def read_vector(record: RunRecord, name: str) -> ResidualVector:
    """A mean difference of the run; strength 1 is the mean norm of the finetuned side's activations at that layer,
    first positions left out.

    Raises:
        InvalidInput: not of the form LAYER:LABEL:difference.
        UnknownName: a layer or label that the run does not hold.
    """
    number, _, rest = name.partition(":")
    label, _, source = rest.rpartition(":")
    if not number.isdigit() or source != "difference":
        raise InvalidInput(
            f"{name!r} is not of the form LAYER:LABEL:difference, for instance {_layer(record, None)}:all:difference."
        )
    layer = _layer(record, int(number))
    labels: list[str] = record.manifest.notes["labels"]
    if label not in labels:
        raise UnknownName(f"Run {record.id} holds no label {label!r}; labels: {', '.join(labels)}.")
    place = [int(known) for known in record.array("layers")].index(layer)
    norms = record.array("norm_finetuned")[place]
    scale = norms[labels.index("all")] or norms[norms > 0].min(initial=np.inf)
    values = record.array("mean_difference")[place, labels.index(label)].astype(np.float32)
    return ResidualVector(
        values, layer, float(scale) if np.isfinite(scale) else 1.0, f"mean difference at {label}, layer {layer}"
    )


def positions_figure(record: RunRecord) -> dict[str, Any]:
    """Median norm of the difference at each position, one line a layer."""
    rows = record.table("profile", ["layer", "position", "norm_difference"]).to_pylist()
    data = []
    for layer in record.array("layers").tolist():
        here = [row for row in rows if row["layer"] == layer]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": f"layer {layer}",
                "x": [row["position"] for row in here],
                "y": [row["norm_difference"] for row in here],
            }
        )
    axes = {"xaxis": {"title": {"text": "position"}}, "yaxis": {"title": {"text": "median norm of the difference"}}}
    return {"data": data, "layout": {"title": {"text": "Norm of the difference by position and layer"}, **axes}}


def histogram_figure(record: RunRecord) -> dict[str, Any]:
    """Counts of tokens over the logarithm of their relative difference; attention sinks are left out."""
    data = []
    zeros = 0
    for layer in record.array("layers").tolist():
        edges = record.array(f"histogram.{layer}.edges")
        zeros += int(record.array(f"histogram.{layer}.zeros")[0])
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "line": {"shape": "hvh"},
                "name": f"layer {layer}",
                "x": (10 ** ((edges[1:] + edges[:-1]) / 2)).tolist(),
                "y": record.array(f"histogram.{layer}.counts").tolist(),
            }
        )
    title = {"text": f"Relative difference per token ({zeros} exactly 0)"}
    axes = {"xaxis": {"type": "log", "title": {"text": "relative difference"}}, "yaxis": {"title": {"text": "tokens"}}}
    return {"data": data, "layout": {"title": title, **axes}}


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
        "contexts on which alone the finetuned model thinks differently. Size alone is no evidence: as a verdict "
        "on unrelated text it is no better than chance. Mean differences serve as vectors "
        "(RUN/LAYER:LABEL:difference). Reads stored `activations` too."
    )
    version: ClassVar[int] = 1
    Params: ClassVar[type[BaseModel]] = ActivationAnalysisParams
    Result: ClassVar[type[MethodResult]] = ActivationAnalysisResult
    cost: ClassVar[Cost] = "minutes"
    views: ClassVar[Mapping[str, View]] = {
        "tokens": View("tokens", "Words with their mean scores, by z or by a score.", TokensParams, tokens),
        "examples": EXAMPLES_VIEW,
        "positions": View(
            "positions",
            "Scores by position; mean differences by position and special token.",
            PositionsParams,
            positions,
        ),
    }
    figures: ClassVar[Sequence[Figure]] = (
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
        return [row["vector"] for row in record.table("labels").to_pylist() if row["mean_difference_norm"] > 0]

    def vector(self, record: RunRecord, name: str) -> ResidualVector:
        return read_vector(record, name)
