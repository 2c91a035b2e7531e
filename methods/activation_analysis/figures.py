"""Plots of a finished activation analysis, as plotly figures in plain JSON. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord


def positions(record: RunRecord) -> dict[str, Any]:
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


def histogram(record: RunRecord) -> dict[str, Any]:
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
