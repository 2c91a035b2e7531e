"""Plots of a finished causal effect, as plotly dictionaries. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord

_NAMES = {"tested": "tested directions", "difference": "differences of activations", "random": "Gaussian directions"}


def effects(record: RunRecord) -> dict[str, Any]:
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
