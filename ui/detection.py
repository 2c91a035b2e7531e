"""Page "Detection": what methods can tell, by the calibration of a base model. The same parts as docs/detection.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import cycle
from typing import Any

import gradio as gr
import plotly.graph_objects as go
from markupsafe import Markup

from diffing_mcp.core.errors import DiffingError
from diffing_mcp.methods.calibration.detection import MethodDetection
from diffing_mcp.methods.calibration.detection_page import (
    ALL_METHODS,
    TERMS,
    TITLE,
    Heading,
    Part,
    ReliabilityFigure,
    RocFigure,
    Table,
    parts_of,
)
from diffing_mcp.methods.calibration.readings import TOGETHER
from diffing_mcp.methods.calibration.store import calibration_named, stored_calibrations
from diffing_mcp.ui.addresses import show_in_address
from diffing_mcp.ui.html import alert, details, div, element, empty, heading, join, pairs, table
from diffing_mcp.ui.theme import GRID, INK, plot_layout
from diffing_mcp.ui.widgets import DRAWING, picker

_HEIGHT = 460
_DIAGONAL = {"color": INK, "dash": "dot", "width": 1}
_JOINT = "#E07B1A"
_COLOURS = ("#6366F1", "#2A9D8F", "#C2497A", "#A1811F", "#7C8796")
_DASHES = ("solid", "dash", "dashdot")
"""More methods than one can tell colours apart: with dashes each has a look of its own."""
_LONG = 40
"""Characters of a cell that needs a line of its own width: on a phone it would be a column of single words."""
_SHARE = re.compile(r"(\d+ of \d+) (\(.+\))")


def no_calibration() -> Markup:
    """How the first one is made."""
    return empty(
        "No calibration yet",
        "A calibration makes finetunes of a base model whose content is known, and measures what each method shows of "
        "them: minutes for each. It goes on where it stopped.",
        "diffing calibrate BASE --taught",
    )


def part_html(part: str | Heading | Table) -> Markup:
    """A part that is no figure."""
    if isinstance(part, str):
        return element("p", part, classes="d-note")
    if isinstance(part, Heading):
        return div(element("h3", part.text), classes="d-section")
    numeric = [place for place in range(1, len(part.columns)) if all(_is_number(row[place]) for row in part.rows)]
    return table(part.columns, ([_cell(text) for text in row] for row in part.rows), numeric)


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(".", "", 1).isdecimal()


def _cell(text: str) -> Markup:
    """Text of a cell: names as code, the interval of a share below it."""
    if share := _SHARE.fullmatch(text):
        return join([share[1], element("small", share[2], classes="d-interval")])
    named = text.split("`")
    cell = join(element("code", piece) if place % 2 else piece for place, piece in enumerate(named))
    return div(cell, classes="d-long") if len(text) > _LONG else cell


def _curves(part: RocFigure) -> list[tuple[MethodDetection, str, dict[str, Any]]]:
    """Each method's row, name and line, the largest area first."""
    ranked = sorted(part.rows, key=lambda row: -row.area)
    looks = [{"color": colour, "dash": dash, "width": 1.8} for dash in _DASHES for colour in _COLOURS]
    others = cycle(looks)
    return [
        (row, ALL_METHODS, {"color": _JOINT, "dash": "solid", "width": 3.5})
        if row.method == TOGETHER
        else (row, row.method, next(others))
        for row in ranked
    ]


def roc_figure(part: RocFigure) -> dict[str, Any]:
    """A curve a method; the dotted line is chance. `roc_legend` says which is which."""
    data: list[dict[str, Any]] = [_line([0, 1], [0, 1], "chance", line=_DIAGONAL)]
    for row, name, line in _curves(part):
        nulls, taught = zip(*row.roc, strict=True)
        hover = f"{name}, area {row.area:.2f}: %{{x:.2f}}, %{{y:.2f}}<extra></extra>"
        data.append(_line(nulls, taught, name, line=line, hovertemplate=hover))
    figure = _square(data, "share of nulls beyond the threshold", "share of taught finetunes beyond it")
    figure["layout"]["showlegend"] = False
    return figure


def roc_legend(part: RocFigure) -> Markup:
    """The lines of `roc_figure` with the areas below them. Plotly's own would take the plot's place on a phone."""
    entries = [
        element("span", _sample(line), element("code", name) if row.method != TOGETHER else name, _area(row.area))
        for row, name, line in _curves(part)
    ]
    chance = element("span", _sample(_DIAGONAL), "chance", _area(0.5))
    return div("Area below:", *entries, chance, classes="d-lines")


def _area(value: float) -> Markup:
    return element("b", f"{value:.2f}")


def _sample(line: Mapping[str, Any]) -> Markup:
    """A piece of a line as the plot draws it."""
    gaps = {"dash": "9 5", "dashdot": "9 3 2 3", "dot": "2 3"}.get(line["dash"], "none")
    return Markup(
        '<svg width="34" height="8" aria-hidden="true"><line x1="0" y1="4" x2="34" y2="4" stroke="{}" '
        'stroke-width="{}" stroke-dasharray="{}"/></svg>'
    ).format(line["color"], line["width"], gaps)


def reliability_figure(part: ReliabilityFigure) -> dict[str, Any]:
    """For each range of stated probabilities the share that was taught, with its interval; on the dotted line they are
    right.
    """
    middles = [sum(map(float, stated.split(" to "))) / 2 for stated, _ in part.bins]
    shares = [share.count / share.of for _, share in part.bins]
    points = {
        "type": "scatter",
        "mode": "markers",
        "name": "taught, with its 95 % interval",
        "x": middles,
        "y": shares,
        "customdata": [f"stated {stated}: {share.as_text()} taught" for stated, share in part.bins],
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {"size": 11},
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [share.high - found for (_, share), found in zip(part.bins, shares, strict=True)],
            "arrayminus": [found - share.low for (_, share), found in zip(part.bins, shares, strict=True)],
        },
    }
    right = _line([0, 1], [0, 1], "stated and taught alike", line=_DIAGONAL)
    return _square([right, points], "stated probability", "share that was taught")


def _line(across: Any, up: Any, name: str, **shape: Any) -> dict[str, Any]:
    return {"type": "scatter", "mode": "lines", "x": list(across), "y": list(up), "name": name, **shape}


def _square(data: list[dict[str, Any]], across: str, up: str) -> dict[str, Any]:
    axis = {"range": [-0.02, 1.02], "zeroline": False, "gridcolor": GRID}
    return {
        "data": data,
        "layout": {
            "xaxis": {**axis, "title": {"text": across}},
            "yaxis": {**axis, "title": {"text": up}},
            # Below the plot: beside it there is no room on a phone.
            "legend": {"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0},
            "margin": {"l": 56, "r": 16, "t": 16, "b": 48},
        },
    }


def build(demo: gr.Blocks) -> None:
    """Lay out the page and connect it."""
    about = "Finetunes of known content, and what each method measured of them: how far a finding can be trusted."
    gr.HTML(heading(TITLE, about))
    base = picker(
        [],
        label="Base model",
        info="Those that are calibrated; `diffing calibrate BASE --taught` adds one",
        elem_id="detection-base",
    )
    gr.HTML(details("What the columns mean", pairs(TERMS), element("p", "Intervals are exact 95 % ones.")))

    @gr.render(inputs=[base], **DRAWING)
    def page(name: str | None) -> None:
        with gr.Column(elem_id="detection-page"):
            if not name:
                gr.HTML(no_calibration())
                return
            try:
                parts = parts_of(calibration_named(name))
            except DiffingError as error:
                gr.HTML(alert(error.message))
                return
            for part in parts:
                _shown(part)

    def opened(request: gr.Request) -> Any:
        names = [each.base_name for each in stored_calibrations()]
        wanted = request.query_params.get("base") or (names[0] if names else None)
        return gr.update(choices=names, value=wanted)

    demo.load(opened, None, [base], api_visibility="private", show_progress="hidden")
    base.input(None, [base], None, js=show_in_address("base"), api_visibility="private")


def _shown(part: Part) -> None:
    if isinstance(part, str | Heading | Table):
        gr.HTML(part_html(part))
        return
    figure = roc_figure(part) if isinstance(part, RocFigure) else reliability_figure(part)
    gr.Plot(go.Figure(plot_layout(figure, _HEIGHT), skip_invalid=True), show_label=False, container=False)
    if isinstance(part, RocFigure):
        gr.HTML(roc_legend(part))
