"""Figures of finished runs as small pictures, for hosts that draw nothing themselves. matplotlib is imported by the
first one.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 6.4, 3.6
LINE = 0.16
"""Inches; the last is what a horizontal bar with its label needs."""
DOTS = 110
"""An inch: about 25 kB a picture."""
BASE, FINETUNED = "#5B7FB0", "#E07B1A"
OTHERS = ("#6366F1", "#2A9D8F", "#C2497A", "#A1811F", "#7C8796")
INK = "#7C8796"
"""Reads on white and on near-black: the background is transparent."""
MOST_BARS = 25
MOST_POINTS = 20_000
LABEL = 32


def png(figure: Mapping[str, Any]) -> bytes:
    """A plotly figure (`{"data", "layout"}`; bars, lines, points, boxes, histograms, one heat map) as a PNG; empty when
    it has nothing to draw. Labels may be text of models: no markup in them is read.
    """
    from matplotlib.figure import Figure

    # A token of a script that the font lacks shows as a box.
    warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
    traces = [trace for trace in figure.get("data") or () if any(len(trace.get(axis) or ()) for axis in "xyz")]
    if not traces:
        return b""
    layout = figure.get("layout") or {}
    lines = sum(min(len(trace["y"]), MOST_BARS) for trace in traces if trace.get("orientation") == "h")
    drawing = Figure(figsize=(WIDTH, max(HEIGHT, LINE * lines)), dpi=DOTS, layout="constrained")
    axes = drawing.add_subplot()
    axes.tick_params(colors=INK, labelsize=8)
    for spine in axes.spines.values():
        spine.set_color(INK)
    second = axes.twinx() if any(trace.get("yaxis") == "y2" for trace in traces) else None
    _bars(axes, {place: trace for place, trace in enumerate(traces) if trace.get("type") == "bar"})
    for place, trace in enumerate(traces):
        if (draw := _DRAW.get(trace.get("type", "scatter"))) is not None:
            target = second if second is not None and trace.get("yaxis") == "y2" else axes
            draw(target, trace, _colour(trace, place), place)
    boxes = [trace for trace in traces if trace.get("type") == "box"]
    if boxes:
        names = [_plain(trace.get("name", "")) for trace in boxes]
        (axes.set_yticks if boxes[0].get("x") else axes.set_xticks)(range(len(boxes)), names)
    _axis(axes, "x", layout.get("xaxis") or {})
    _axis(axes, "y", layout.get("yaxis") or {})
    if second is not None:
        second.tick_params(colors=INK, labelsize=8)
        _axis(second, "y", layout.get("yaxis2") or {})
    if not boxes and sum(bool(trace.get("name")) for trace in traces) > 1:
        axes.legend(
            *_legend(axes, second), fontsize=8, frameon=False, labelcolor=INK, loc="lower left", bbox_to_anchor=(0, 1)
        )
    written = io.BytesIO()
    drawing.savefig(written, format="png", transparent=True)
    return written.getvalue()


def _bars(axes: Axes, traces: Mapping[int, Mapping[str, Any]]) -> None:
    """All series of bars: those of the same labels beside each other."""
    rows = []
    for place, trace in traces.items():
        horizontal = trace.get("orientation") == "h"
        # The most telling bar of a horizontal plot is the last one, as the first stands lowest.
        kept = slice(-MOST_BARS, None) if horizontal else slice(MOST_BARS)
        labels, values = (trace["y"], trace["x"]) if horizontal else (trace["x"], trace["y"])
        rows.append((place, trace, horizontal, list(labels)[kept], np.asarray(list(values)[kept], dtype=float)))
    named = any(isinstance(label, str) for *_, labels, _ in rows for label in labels)
    places = {label: at for at, label in enumerate(dict.fromkeys(label for *_, labels, _ in rows for label in labels))}
    apart = len(places) == sum(len(labels) for *_, labels, _ in rows)
    thick = 0.8 if apart else 0.8 / max(1, len(rows))
    for order, (place, trace, horizontal, labels, values) in enumerate(rows):
        at = np.asarray([places[label] if named else label for label in labels], dtype=float)
        shift = 0.0 if apart else (order - (len(rows) - 1) / 2) * thick
        draw = axes.barh if horizontal else axes.bar
        draw(at + shift, values, thick, color=_colour(trace, place), label=_plain(trace.get("name", "")))
    if rows and named:
        shown = [_plain(label) for label in places]
        if rows[0][2]:
            axes.set_yticks(range(len(shown)), shown)
        else:
            axes.set_xticks(range(len(shown)), shown, rotation=30, ha="right")


def _points(axes: Axes, trace: Mapping[str, Any], colour: str, place: int) -> None:
    x, y = list(trace["x"])[:MOST_POINTS], list(trace["y"])[:MOST_POINTS]
    if any(isinstance(value, str) for value in [*x, *y]):
        x, y = ([_plain(value) for value in each] for each in (x, y))
    mode = trace.get("mode") or "lines"
    label = _plain(trace.get("name", ""))
    if "lines" in mode:
        stepped = (trace.get("line") or {}).get("shape") == "hvh"
        marker = "o" if "markers" in mode else None
        axes.plot(
            x, y, color=colour, marker=marker, markersize=3, drawstyle="steps-mid" if stepped else None, label=label
        )
    elif mode == "text":
        for across, up, text in zip(x, y, trace["text"], strict=False):
            axes.text(across, up, _plain(text, 14), color=INK, fontsize=7, ha="center", va="center")
        axes.scatter(x, y, s=0)
    else:
        size = np.asarray((trace.get("marker") or {}).get("size", 5), dtype=float)
        axes.scatter(x, y, s=(size[:MOST_POINTS] if size.ndim else size) ** 2 / 2, c=colour, alpha=0.7, label=label)
    error = trace.get("error_y") or {}
    if error.get("array") is not None and len(error["array"]) == len(x):
        axes.errorbar(x, y, yerr=np.nan_to_num(np.asarray(error["array"], float)), fmt="none", ecolor=colour, lw=0.8)


def _box(axes: Axes, trace: Mapping[str, Any], colour: str, place: int) -> None:
    values = np.asarray(trace.get("x") or trace.get("y"), dtype=float)
    colours: dict[str, Any] = {f"{part}props": {"color": colour} for part in ("box", "whisker", "cap", "median")}
    axes.boxplot(
        values[np.isfinite(values)],
        positions=[place],
        widths=0.5,
        orientation="horizontal" if trace.get("x") else "vertical",
        manage_ticks=False,
        flierprops={"markeredgecolor": colour, "markersize": 3},
        **colours,
    )


def _histogram(axes: Axes, trace: Mapping[str, Any], colour: str, place: int) -> None:
    bins = trace.get("xbins") or {}
    edges: Any = np.arange(bins["start"], bins["end"] + bins["size"] / 2, bins["size"]) if "size" in bins else "auto"
    axes.hist(np.asarray(trace["x"], dtype=float), edges, color=colour, label=_plain(trace.get("name", "")))


def _heat_map(axes: Axes, trace: Mapping[str, Any], colour: str, place: int) -> None:
    values = np.asarray([[np.nan if cell is None else cell for cell in row] for row in trace["z"]], dtype=float)
    shown = axes.imshow(values, aspect="auto", cmap="viridis", vmin=trace.get("zmin"), vmax=trace.get("zmax"))
    for setting, names in ((axes.set_xticks, trace.get("x")), (axes.set_yticks, trace.get("y"))):
        if names is not None:
            every = max(1, len(names) // 24)
            setting(range(0, len(names), every), [_plain(name) for name in names[::every]])
    bar = axes.figure.colorbar(shown, ax=axes)
    bar.ax.tick_params(colors=INK, labelsize=8)
    bar.set_label(_titled((trace.get("colorbar") or {}).get("title")), color=INK, fontsize=8)


_DRAW = {"scatter": _points, "scattergl": _points, "box": _box}
_DRAW |= {"histogram": _histogram, "heatmap": _heat_map}


def _axis(axes: Axes, which: str, given: Mapping[str, Any]) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_label_text(_titled(given.get("title"), 90), color=INK, fontsize=9)
    if given.get("type") == "log":
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        # The default labels are written in markup.
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(lambda value, _: "")
    if given.get("autorange") == "reversed":
        axis.set_inverted(True)
    if limits := given.get("range"):
        low, high = (10.0**limit if given.get("type") == "log" else limit for limit in limits)
        (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)


def _legend(axes: Axes, second: Axes | None) -> tuple[list[Any], list[Any]]:
    handles, labels = axes.get_legend_handles_labels()
    more, further = second.get_legend_handles_labels() if second is not None else ([], [])
    return [*handles, *more], [*labels, *further]


def _colour(trace: Mapping[str, Any], place: int) -> str:
    """The colour of the side that a series' name names; of another kind when it names both or none."""
    named = [side for side in ("base", "finetuned") if re.search(rf"\b{side}\b", str(trace.get("name", "")))]
    if len(named) == 1:
        return BASE if named == ["base"] else FINETUNED
    return OTHERS[place % len(OTHERS)]


def _titled(title: Any, longest: int = LABEL) -> str:
    return _plain(title.get("text", "") if isinstance(title, Mapping) else title or "", longest)


def _plain(label: Any, longest: int = LABEL) -> str:
    """A label on one line in which nothing is markup."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(label)).strip()
    short = text if len(text) <= longest else text[: longest - 1] + "…"
    return short.replace("$", r"\$")
