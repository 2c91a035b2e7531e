"""Drill-down and plots over a finished activation analysis, from its stored tables and arrays. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.methods.activation_analysis.schema import LabelRow, PositionRow, WordRow
from diffing_mcp.methods.directions.vectors import ResidualVector

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord


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
