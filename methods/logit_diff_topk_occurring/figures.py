"""Plots of a finished logit-difference run, as plotly dictionaries. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord

_POINTS = 1500


def scatter(record: RunRecord) -> dict[str, Any]:
    """Mean logit difference against occurrence in the top K, for the tokens that occur most often on either side."""
    from diffing_mcp.methods.logit_diff_topk_occurring.views import read_entries

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
        "layout": {
            "xaxis": {"title": {"text": "log odds of expected occurrences, finetuned over base"}},
            "margin": {"l": 120},
        },
    }


_TOPIC_TOKENS = 10


def topics(record: RunRecord) -> dict[str, Any]:
    """The first tokens of each topic, as bars of their share of the topic's weights."""
    from diffing_mcp.methods.logit_diff_topk_occurring.views import TopicsParams
    from diffing_mcp.methods.logit_diff_topk_occurring.views import topics as read_topics

    series = [
        {
            "type": "bar",
            "orientation": "h",
            "name": f"topic {topic.topic} ({100 * topic.mass:.0f} % of the mass)",
            # Invisible marks keep equal tokens of different topics apart on the axis.
            "y": [f"{token.token!r}" + "\u200b" * topic.topic for token in topic.tokens[::-1]],
            "x": [token.weight for token in topic.tokens[::-1]],
        }
        for topic in read_topics(record, TopicsParams(tokens=_TOPIC_TOKENS)).topics
    ]
    return {
        "data": series,
        "layout": {"xaxis": {"title": {"text": "share of the topic's weights"}}, "margin": {"l": 120}},
    }


def positions(record: RunRecord) -> dict[str, Any]:
    """Mean size of the logit differences by position."""
    rows = record.table("positions").to_pylist()
    labels = [str(row["first"]) if row["first"] == row["last"] else f"{row['first']}-{row['last']}" for row in rows]
    return {
        "data": [{"type": "bar", "x": labels, "y": [row["mean_size"] for row in rows]}],
        "layout": {
            "xaxis": {"title": {"text": "position in the text"}, "type": "category"},
            "yaxis": {"title": {"text": "mean |logit difference|"}},
        },
    }
