"""Figures as pictures: everything that a method's figure may hold is drawn, and no label is read as markup."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffing_mcp.mcp_server.plot_images import _plain, png

BARS = {"type": "bar", "orientation": "h", "x": [1.0, 2.0], "y": ["a", "b"]}
LINE = {"type": "scatter", "mode": "lines+markers", "name": "base", "x": [1, 2, 3], "y": [0.1, 1.0, 0.2]}
TRACES: dict[str, list[dict[str, Any]]] = {
    "bars": [BARS, {**BARS, "name": "finetuned"}],
    "bars of other labels": [BARS, {**BARS, "y": ["c", "d"]}],
    "upright bars": [{"type": "bar", "x": [0, 1], "y": [3, 4]}, {"type": "bar", "x": ["u", "v"], "y": [3, 4]}],
    "lines": [LINE, {**LINE, "name": "other", "yaxis": "y2"}],
    "steps": [{**LINE, "line": {"shape": "hvh"}, "error_y": {"array": [0.1, None, 0.3]}}],
    "points": [{**LINE, "mode": "markers", "type": "scattergl", "marker": {"size": [3, 4, 5]}}],
    "words": [{**LINE, "mode": "text", "text": ["x", "$y$", "\n"]}],
    "boxes": [{"type": "box", "name": "p", "x": [1, 2, 3]}, {"type": "box", "name": "q", "x": [2, 3, None]}],
    "heaps": [{"type": "histogram", "x": [0.1, 0.2], "xbins": {"start": 0, "end": 1, "size": 0.1}}],
    "heat map": [{"type": "heatmap", "x": ["1", "2"], "y": ["a"], "z": [[1, None]], "colorbar": {"title": "%"}}],
}


@pytest.mark.parametrize("kind", TRACES)
def test_every_kind_is_drawn(kind: str) -> None:
    layout = {"xaxis": {"title": {"text": "nats"}}, "yaxis": {"autorange": "reversed"}, "yaxis2": {"type": "log"}}
    assert png({"data": TRACES[kind], "layout": layout}).startswith(b"\x89PNG")


def test_logarithmic_axes_and_ranges() -> None:
    axis = {"type": "log", "range": [-2, 1]}
    assert png({"data": [LINE], "layout": {"xaxis": axis, "yaxis": axis}}).startswith(b"\x89PNG")


def test_nothing_to_draw_is_no_picture() -> None:
    assert png({"data": [], "layout": {}}) == png({"data": [{"type": "bar", "x": [], "y": []}]}) == b""


@settings(max_examples=200)
@given(st.text())
def test_no_label_is_markup(text: str) -> None:
    label = _plain(text)
    assert "$" not in label.replace(r"\$", "")
    assert label.isprintable()
    assert len(label.replace(r"\$", "$")) <= 32


@pytest.mark.parametrize("label", [r"$\frac{1}{0}$", "$", r"\$", "$$", "a$b$c", r"\frac", "\N{GRINNING FACE}", "日本"])
def test_hostile_labels_are_drawn_as_they_are(label: str) -> None:
    labelled = {**BARS, "y": [label, label + "2"], "name": label}
    layout = {"xaxis": {"title": {"text": label}}}
    assert png({"data": [labelled, {**labelled, "name": "x"}], "layout": layout}).startswith(b"\x89PNG")
