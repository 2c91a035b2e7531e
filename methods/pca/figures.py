"""Plots of a finished PCA, as plotly dictionaries. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord


def variance(record: RunRecord) -> dict[str, Any]:
    """Share of variance by component, beside its null, one pair of traces a layer."""
    rows = record.table("components").to_pylist()
    data = []
    for layer in dict.fromkeys(row["layer"] for row in rows):
        chosen = [row for row in rows if row["layer"] == layer]
        x = [row["component"] for row in chosen]
        stable = [f"stability {row['stability']:.2f}" for row in chosen]
        data.append(
            {"type": "bar", "name": f"layer {layer}", "x": x, "y": [row["explained"] for row in chosen], "text": stable}
        )
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": f"null, layer {layer}",
                "x": x,
                "y": [row["null_explained"] for row in chosen],
            }
        )
    return {
        "data": data,
        "layout": {"xaxis": {"title": {"text": "component"}}, "yaxis": {"title": {"text": "share of variance"}}},
    }
