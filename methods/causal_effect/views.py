"""Drill-down and plots over a finished causal effect, from its stored arrays and tables. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.core.errors import UnknownName
from diffing_mcp.methods.causal_effect.schema import SampleRow

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord

_NAMES = {"tested": "tested directions", "difference": "differences of activations", "random": "Gaussian directions"}


class SamplesParams(BaseModel):
    """Which samples."""

    model_config = ConfigDict(extra="forbid")

    row: int = Field(0, ge=0, description="Row of the result.")
    order: Literal["change", "as_read"] = Field("change", description="`change`: largest loss change first.")
    offset: int = Field(0, ge=0)
    limit: int = Field(15, ge=1, le=100)


class SamplesView(BaseModel):
    """Losses of single texts."""

    vector: str
    rows: list[SampleRow]
    total: int


class NullsParams(BaseModel):
    """Which nulls."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["random", "difference"] = Field(
        "difference", description="Gaussian directions, or differences of random base activations."
    )
    layer: int | None = Field(None, description="Absolute layer; None: all layers of the run.")


class NullsView(BaseModel):
    """Loss changes, nats a token."""

    changes: list[float]


def samples(record: RunRecord, params: SamplesParams) -> SamplesView:
    """Losses of each text with one tested direction changed. Raises UnknownName for a row that is not there."""
    candidates = record.table("candidates").to_pylist()
    tested = [index for index, row in enumerate(candidates) if row["kind"] == "tested"]
    if params.row >= len(tested):
        raise UnknownName(f"Run {record.id} has {len(tested)} rows; they are counted from 0.")
    index = tested[params.row]
    tokens, target, other = (record.array(name) for name in ("tokens", "target_nats", "other_nats"))
    changed = record.array("changed_nats")[index]
    order = (
        np.argsort(-np.abs((changed - target) / tokens), kind="stable")
        if params.order == "change"
        else np.arange(len(tokens))
    )
    rows = [
        SampleRow(
            sample=int(sample),
            tokens=int(tokens[sample]),
            target_loss=round(float(target[sample] / tokens[sample]), 4),
            other_loss=round(float(other[sample] / tokens[sample]), 4),
            changed_loss=round(float(changed[sample] / tokens[sample]), 4),
        )
        for sample in order[params.offset : params.offset + params.limit]
    ]
    return SamplesView(vector=candidates[index]["label"], rows=rows, total=len(tokens))


def nulls(record: RunRecord, params: NullsParams) -> NullsView:
    """Loss changes of the null directions of one kind, largest in size first."""
    rows = [row for row in record.table("candidates").to_pylist() if row["kind"] == params.kind]
    layers = sorted({row["layer"] for row in rows})
    if params.layer is not None and params.layer not in layers:
        raise UnknownName(
            f"Run {record.id} tested no direction of layer {params.layer}; layers: "
            f"{', '.join(map(str, layers)) or 'none'}."
        )
    rows = [row for row in rows if params.layer in (None, row["layer"])]
    return NullsView(changes=sorted((round(row["loss_change"], 5) for row in rows), key=lambda change: -abs(change)))


def effects_figure(record: RunRecord) -> dict[str, Any]:
    """Loss changes of the tested directions over those of the nulls."""
    rows = record.table("candidates").to_pylist()
    data = [
        {
            "type": "box",
            "boxpoints": "all",
            "name": name,
            "x": [row["loss_change"] for row in rows if row["kind"] == kind],
            "text": [row["label"] for row in rows if row["kind"] == kind],
        }
        for kind, name in _NAMES.items()
    ]
    return {"data": data, "layout": {"xaxis": {"title": {"text": "change of the loss, nats a token"}}}}
