"""Figures of the oracle, from finished runs. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord


def words(record: RunRecord) -> dict[str, Any]:
    """Words of the answers on changed activations, and how often the compared answers have them."""
    rows = record.result_json()["words"]
    names = [f"{row['word']} ({row['kind']})" for row in rows]
    data = [
        {"type": "bar", "name": name, "x": names, "y": [row[field] for row in rows]}
        for name, field in (("answers", "count"), ("compared", "compared"))
    ]
    return {"data": data, "layout": {"yaxis": {"title": {"text": "answers that contain the word"}}}}
