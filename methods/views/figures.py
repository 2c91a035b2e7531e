"""Plotly figures of finished runs, as JSON-ready dictionaries. A method says what is drawn and what the axes are;
colours, fonts and margins are those of whoever shows it (`ui/theme.py`, `mcp_server/plot_images.py`). Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

Kind = Literal["bars", "rows", "boxes", "line", "curve", "steps", "points", "words", "histogram", "heatmap"]
_KINDS: Mapping[Kind, Mapping[str, Any]] = {
    "bars": {"type": "bar"},
    "rows": {"type": "bar", "orientation": "h"},
    "boxes": {"type": "box", "boxpoints": "all"},
    "line": {"type": "scatter", "mode": "lines+markers"},
    "curve": {"type": "scatter"},
    "steps": {"type": "scatter", "mode": "lines", "line": {"shape": "hvh"}},
    "points": {"type": "scattergl", "mode": "markers"},
    "words": {"type": "scatter", "mode": "text"},
    "histogram": {"type": "histogram"},
    "heatmap": {"type": "heatmap"},
}
_COLUMNS = ("x", "y", "text")

Axis = str | Mapping[str, Any]
"""The title of an axis, or plotly's settings of it with `title` as plain text."""


def trace(kind: Kind, rows: Sequence[Mapping[str, Any]] = (), name: str = "", **given: Any) -> dict[str, Any]:
    """One series of a figure.

    Args:
        rows: stored rows that it shows.
        name: in the legend; empty: none.
        given: `x`, `y` and `text` as the name of a column of the rows, or as values; all else as plotly calls it.
    """
    values = {
        key: [row[value] for row in rows] if key in _COLUMNS and isinstance(value, str) else value
        for key, value in given.items()
    }
    return {**_KINDS[kind], **({"name": name} if name else {}), **values}


def log_histogram(name: str, edges: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    """A series of counts [N] between edges [N + 1], the logarithms (base 10) of what a logarithmic x axis shows."""
    return trace("steps", name=name, x=(10 ** ((edges[1:] + edges[:-1]) / 2)).tolist(), y=counts.tolist())


def figure(
    traces: Sequence[dict[str, Any]], x: Axis = "", y: Axis = "", title: str = "", **layout: Any
) -> dict[str, Any]:
    """`{"data", "layout"}` of the series.

    Args:
        title: what the declared title does not say, such as a count.
        layout: all else as plotly calls it.
    """
    axes = {name: _axis(axis) for name, axis in (("xaxis", x), ("yaxis", y)) if axis}
    titled = {"title": {"text": title}} if title else {}
    return {"data": list(traces), "layout": {**titled, **axes, **layout}}


def plain_labels(value: Any, key: str = "") -> Any:
    """A figure whose labels show as they are: plotly reads HTML in them, and tokens and texts come from models, where
    `<br>` is a token like others and a link goes wherever its writer likes. Templates are the method's own.
    """
    if isinstance(value, str):
        return value if key.endswith("template") else value.replace("&", "&amp;").replace("<", "&lt;")
    if isinstance(value, Mapping):
        return {name: plain_labels(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_labels(item, key) for item in value]
    return value


def _axis(axis: Axis) -> dict[str, Any]:
    settings = {"title": axis} if isinstance(axis, str) else dict(axis)
    return settings | ({"title": {"text": settings["title"]}} if "title" in settings else {})
