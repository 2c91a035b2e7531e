"""Plots of finished perplexity differencing, as plotly dictionaries. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord


def distribution(record: RunRecord) -> dict[str, Any]:
    """Log-perplexity differences of both models' completions; equal models give two equal heaps."""
    rows = record.table("completions", ["writer", "difference", "prefill"]).to_pylist()
    data = [
        {
            "type": "box",
            "boxpoints": "all",
            "name": f"written by {writer}",
            "x": [row["difference"] for row in rows if row["writer"] == writer],
            "text": [row["prefill"] for row in rows if row["writer"] == writer],
        }
        for writer in ("finetuned", "base")
    ]
    return {
        "data": data,
        "layout": {
            "xaxis": {"title": {"text": "log-perplexity under the other model minus under its own, nats a token"}}
        },
    }
