"""Colours, style sheet and plot layout of the panel. System fonts only, so that nothing is fetched from elsewhere."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import gradio as gr

BASE, FINETUNED = "#5B7FB0", "#E07B1A"
"""The two sides of a pair, everywhere: base in blue-grey, finetuned in orange. Both are legible on white and on
near-black.
"""

ARM_COLOURS = {"blackbox": "#2A9D8F", "method": "#8B5CF6", "placebo": "#D97706", "cheat": "#B91C1C"}
"""The two arms of an evaluation; never the colours of the sides."""

INK, GRID = "#7C8796", "rgba(128, 138, 150, 0.22)"
"""Text and grid of plots: a middle grey that reads in light and in dark mode, since a plot does not know which one it
is shown in.
"""

SANS = ["ui-sans-serif", "system-ui", "Segoe UI", "Helvetica Neue", "Arial", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "DejaVu Sans Mono", "monospace"]


def theme() -> gr.themes.Base:
    """The Gradio theme."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        secondary_hue=gr.themes.colors.slate,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=SANS,
        font_mono=MONO,
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_label_text_size="*text_sm",
        block_shadow="none",
        block_border_width="1px",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
    )


def css() -> str:
    """The style sheet beside this module."""
    return Path(__file__).with_name("panel.css").read_text(encoding="utf-8")


def plot_layout(figure: dict[str, Any], height: int | None = None) -> dict[str, Any]:
    """A plotly figure (`{"data", "layout"}`) in the panel's look: transparent, middle-grey text, system font, series
    named after one side in its colour, and room for the label of every horizontal bar. The figure given is not changed.
    """
    data = [_side_coloured(trace) for trace in copy.deepcopy(list(figure.get("data", [])))]
    layout: dict[str, Any] = copy.deepcopy(dict(figure.get("layout", {})))
    layout.pop("template", None)
    layout.update(
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": ", ".join(SANS), "size": 13, "color": INK},
        # Lines without a colour of their own are not the sides of a pair, so they get neither of these two colours.
        colorway=["#6366F1", "#2A9D8F", "#C2497A", "#A1811F", "#7C8796"],
        autosize=True,
    )
    layout.pop("width", None)
    layout.setdefault("margin", {"l": 64, "r": 24, "t": 40, "b": 56})
    layout.setdefault("legend", {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0})
    if height is not None:
        layout["height"] = height
    for name in {"xaxis", "yaxis", *(key for key in layout if key.startswith(("xaxis", "yaxis")))}:
        axis = layout[name] = dict(layout.get(name) or {})
        for key, value in {
            "gridcolor": GRID,
            "zerolinecolor": GRID,
            "linecolor": GRID,
            "automargin": True,
            "exponentformat": "power",
        }.items():
            axis.setdefault(key, value)
        if isinstance(axis.get("title"), dict):
            axis["title"].setdefault("font", {"size": 13})
    if labels := {label for trace in data if trace.get("orientation") == "h" for label in trace.get("y", ())}:
        # Plotly leaves out the labels that it finds no room for.
        layout.setdefault("height", max(450, 150 + _BAR * len(labels)))
        layout["yaxis"] = {"type": "category", "dtick": 1, **layout["yaxis"]}
    return {"data": data, "layout": layout}


_BAR = 20
"""Pixels of a horizontal bar with its label."""


def _side_coloured(trace: dict[str, Any]) -> dict[str, Any]:
    """The trace, in the colour of the side that its name names (`base`, `written by finetuned`); one that names both or
    none keeps its own.
    """
    named = {side for side in ("base", "finetuned") if re.search(rf"\b{side}\b", str(trace.get("name", "")))}
    if len(named) != 1:
        return trace
    colour = BASE if named == {"base"} else FINETUNED
    parts = ("marker", "line") if trace.get("type") in ("scatter", "scattergl", "box") else ("marker",)
    return {**trace, **{part: {"color": colour, **trace.get(part, {})} for part in parts}}
