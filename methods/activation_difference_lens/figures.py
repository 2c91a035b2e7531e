"""Plots of a finished activation difference lens, as plotly dictionaries. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from methods.runs import RunRecord


def norms(record: RunRecord) -> dict[str, Any]:
    """Relative norm of the mean difference by position, one trace a layer."""
    table = record.table("positions").to_pydict()
    layers = list(dict.fromkeys(table["layer"]))
    data = []
    for layer in layers:
        rows = [row for row, value in enumerate(table["layer"]) if value == layer]
        data.append(
            {
                "type": "bar",
                "name": f"layer {layer}",
                "x": [f"position {table['position'][row]}" for row in rows],
                "y": [table["relative_norm"][row] for row in rows],
                "text": [f"stability {table['stability'][row]:.3f}" if table["stability"][row] is not None else "" for row in rows],
            }
        )
    return {"data": data, "layout": {"barmode": "group", "yaxis": {"title": {"text": "norm of the mean difference / norm of activations"}}}}


def lens(record: RunRecord) -> dict[str, Any]:
    """The first tokens that the mean difference promotes, by z, for each position of the first layer."""
    columns = record.table("lens").to_pydict()
    data: list[dict[str, Any]] = []
    if columns["layer"]:
        first = columns["layer"][0]
        for position in dict.fromkeys(columns["position"]):
            rows = [
                row
                for row in range(len(columns["layer"]))
                if columns["layer"][row] == first
                and columns["position"][row] == position
                and (columns["source"][row], columns["sign"][row], columns["ranked_by"][row]) == ("difference", "promoted", "z")
            ][:10]
            data.append(
                {
                    "type": "scatter",
                    "mode": "text",
                    "name": f"position {position}",
                    "x": [position] * len(rows),
                    "y": [columns["z"][row] for row in rows],
                    "text": [columns["token"][row] for row in rows],
                }
            )
    return {
        "data": data,
        "layout": {"xaxis": {"title": {"text": "position"}, "type": "category"}, "yaxis": {"title": {"text": "z of the lens logit"}}},
    }
