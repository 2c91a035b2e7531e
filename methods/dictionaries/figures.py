"""Plots that both dictionary methods have. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord


def training_curve(record: RunRecord) -> dict[str, Any]:
    """Loss and held-out fraction of variance explained by step; empty for a loaded dictionary."""
    if "training" not in record.manifest.tables:
        return {"data": [], "layout": {}}
    table = record.table("training").to_pydict()
    return {
        "data": [
            {"type": "scatter", "name": "loss", "x": table["step"], "y": table["loss"]},
            {
                "type": "scatter",
                "name": "held-out variance explained",
                "x": table["step"],
                "y": table["variance_explained"],
                "yaxis": "y2",
            },
        ],
        "layout": {
            "xaxis": {"title": {"text": "step"}},
            "yaxis": {"title": {"text": "loss"}, "type": "log"},
            "yaxis2": {"title": {"text": "variance explained"}, "overlaying": "y", "side": "right", "showgrid": False},
        },
    }
