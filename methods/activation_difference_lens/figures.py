"""Plots of a finished activation difference lens, as plotly dictionaries. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord

_TOKENS = 10
"""Of each position."""
_WIDEST = 11
"""Characters of a token: columns of text must not run into each other."""


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
                "hovertext": [
                    f"stability {table['stability'][row]:.3f}" if table["stability"][row] is not None else ""
                    for row in rows
                ],
            }
        )
    return {
        "data": data,
        "layout": {
            "barmode": "group",
            "yaxis": {"title": {"text": "norm of the mean difference / norm of activations"}},
        },
    }


def lens(record: RunRecord) -> dict[str, Any]:
    """The first tokens that the mean difference promotes, by z, for each position of the last layer, which reads best
    through the lens.
    """
    rows = record.table("lens").to_pylist()
    layer = max((row["layer"] for row in rows), default=0)
    shown = [
        row
        for row in rows
        if (row["layer"], row["source"], row["sign"], row["ranked_by"]) == (layer, "difference", "promoted", "z")
    ]
    positions = list(dict.fromkeys(row["position"] for row in shown))
    lists = {position: [row for row in shown if row["position"] == position][:_TOKENS] for position in positions}
    trace = {
        "type": "scatter",
        "mode": "text",
        "x": [position for position, chosen in lists.items() for _ in chosen],
        "y": [place for chosen in lists.values() for place in range(1, len(chosen) + 1)],
        "text": [
            row["token"] if len(row["token"]) <= _WIDEST else row["token"][: _WIDEST - 1] + "…"
            for chosen in lists.values()
            for row in chosen
        ],
        "hovertext": [f"{row['token']}: z {row['z']:.2f}" for chosen in lists.values() for row in chosen],
        "textfont": {"size": 10},
    }
    return {
        "data": [trace],
        "layout": {
            "title": {"text": f"Layer {layer}: tokens by the z of their lens logit"},
            "xaxis": {
                "title": {"text": "position"},
                "type": "category",
                "range": [-0.6, len(positions) - 0.4],
                "showgrid": False,
            },
            "yaxis": {"title": {"text": "rank"}, "autorange": "reversed", "dtick": 1, "showgrid": False},
        },
    }
