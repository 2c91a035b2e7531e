"""Plots of a finished logit-difference run, as plotly dictionaries. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from methods.runs import RunRecord

_POINTS = 1500


def scatter(record: RunRecord) -> dict[str, Any]:
    """Mean logit difference against occurrence in the top K, for the tokens that occur most often on either side."""
    from methods.logit_diff.views import read_entries

    entries = read_entries(record)
    series = []
    for sign in ("risen", "fallen"):
        order = entries.order("top_k_occurring", sign)
        order = order[entries.shown[order]][:_POINTS]
        count = entries.risen if sign == "risen" else entries.fallen
        series.append(
            {
                "type": "scattergl",
                "mode": "markers",
                "name": sign,
                "x": entries.mean_difference[order].astype(float).round(4).tolist(),
                "y": (100 * count[order] / max(1, entries.positions)).round(3).tolist(),
                "text": [entries.texts[index] for index in order],
                "hovertemplate": "%{text}<br>mean difference %{x}<br>in top K at %{y} % of positions<extra></extra>",
                "marker": {"size": np.where(entries.content[order], 6, 3).tolist()},
            }
        )
    return {
        "data": series,
        "layout": {
            "xaxis": {"title": {"text": "mean logit difference, finetuned - base"}},
            "yaxis": {"title": {"text": "% of positions in the top K"}},
        },
    }


def bars(record: RunRecord) -> dict[str, Any]:
    """Content words by rise of their expected occurrences, with standard errors; strong ones darker."""
    rows = record.result_json()["words"][::-1]
    return {
        "data": [
            {
                "type": "bar",
                "orientation": "h",
                "y": [row["word"] for row in rows],
                "x": [row["log_odds"] for row in rows],
                "error_x": {"type": "data", "array": [row["error"] or 0 for row in rows]},
                "marker": {"color": ["#1f4e79" if row["strong"] else "#a6bddb" for row in rows]},
            }
        ],
        "layout": {"xaxis": {"title": {"text": "log odds of expected occurrences, finetuned over base"}}, "margin": {"l": 120}},
    }
