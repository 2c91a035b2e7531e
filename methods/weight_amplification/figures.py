"""Plots of a finished weight amplification, as plotly dictionaries. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord


def coherence(record: RunRecord) -> dict[str, Any]:
    """Share of coherent texts by weight."""
    rows = sorted(record.table("weights").to_pylist(), key=lambda row: row["weight"])
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [row["weight"] for row in rows],
                "y": [row["coherent"] for row in rows],
            }
        ],
        "layout": {
            "xaxis": {"title": {"text": "weight of the difference"}},
            "yaxis": {"title": {"text": "share of coherent texts"}, "range": [0, 1.02]},
        },
    }
