"""Plots of a finished continuation-mining run, as plotly dictionaries. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord

_SHOWN = 20


def ngrams(record: RunRecord) -> dict[str, Any]:
    """Continuations of each model that hold the most surprising phrases."""
    rows = record.table("ngrams").to_pylist()[:_SHOWN][::-1]
    series = [
        {
            "type": "bar",
            "orientation": "h",
            "name": side,
            "y": [row["ngram"] for row in rows],
            "x": [row[side] for row in rows],
        }
        for side in ("base", "finetuned")
    ]
    return {
        "data": series,
        "layout": {"barmode": "group", "xaxis": {"title": {"text": "continuations"}}, "margin": {"l": 160}},
    }
