"""Plots of finished steering, as plotly dictionaries. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord


def coherence(record: RunRecord) -> dict[str, Any]:
    """Share of coherent texts by strength."""
    rows = sorted(record.table("strengths").to_pylist(), key=lambda row: row["strength"])
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": side,
            "x": [row["strength"] for row in rows if row["side"] == side],
            "y": [row["coherent"] for row in rows if row["side"] == side],
        }
        for side in sorted({row["side"] for row in rows})
    ]
    return {
        "data": data,
        "layout": {
            "xaxis": {"title": {"text": "strength"}},
            "yaxis": {"title": {"text": "share of coherent texts"}, "range": [0, 1]},
        },
    }
