"""Plots of a finished weight difference, as plotly dictionaries. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord


def norms(record: RunRecord) -> dict[str, Any]:
    """Relative norm of the change by layer and module (those of the blocks), as a heat map in percent."""
    rows = [row for row in record.table("modules").to_pylist() if row["layer"] is not None]
    layers = sorted({row["layer"] for row in rows})
    largest = max((100 * row["relative_norm"] for row in rows), default=0.0)
    modules = list(dict.fromkeys(row["module"] for row in rows if row["norm"] > 0))
    found = {(row["module"], row["layer"]): 100 * row["relative_norm"] for row in rows}
    return {
        "data": [
            {
                "type": "heatmap",
                "x": [str(layer) for layer in layers],
                "y": modules,
                "z": [[found.get((module, layer)) for layer in layers] for module in modules],
                "colorscale": "Viridis",
                "zmin": 0,
                "zmax": largest or 1.0,
                "colorbar": {"title": {"text": "% of the base's norm"}},
            }
        ],
        "layout": {
            "xaxis": {"title": {"text": "layer"}, "type": "category"},
            "yaxis": {"automargin": True, "autorange": "reversed"},
        },
    }
