"""What views and figures of finished runs are made of: choosing rows, pages, plotly dictionaries, declared views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from pydantic import BaseModel, ValidationError

from diffing_mcp.core.errors import UnknownName
from diffing_mcp.methods.contract import by_name, view
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.results import MethodResult
from diffing_mcp.methods.runs.store import RunKey, RunRecord, RunStore
from diffing_mcp.methods.views.figures import figure, log_histogram, trace
from diffing_mcp.methods.views.pages import PageParams, PageView, SearchedPageParams, TextPageParams, TextPageView
from diffing_mcp.methods.views.rows import containing, grouped, held, highest_first, matching, near

ROWS: list[dict[str, Any]] = [
    {"word": "Oven", "side": "base", "score": 1.0, "texts": ["hot"], "moves": [{"token": " cake"}]},
    {"word": "fridge", "side": "finetuned", "score": None, "texts": ["Cold", "icy"], "moves": []},
    {"word": "pan", "side": "base", "score": 3.5, "texts": [], "moves": [{"token": " OVEN"}]},
]


class Move(BaseModel):
    token: str


class WordRow(BaseModel):
    word: str
    side: str
    score: float | None
    texts: list[str]
    moves: list[Move]


def words(rows: Any) -> list[str]:
    return [row["word"] for row in rows]


def test_rows_are_chosen_by_value_number_and_text() -> None:
    assert words(matching(ROWS, side="base")) == ["Oven", "pan"]
    assert words(matching(ROWS, side=None)) == ["Oven", "fridge", "pan"]
    assert words(near([row for row in ROWS if row["score"]], "score", 3.495)) == ["pan"]
    assert words(containing(ROWS, ("word",), "OV")) == ["Oven"]
    assert words(containing(ROWS, ("word", "moves"), "oven")) == ["Oven", "pan"]
    assert words(containing(ROWS, ("texts",), "cold")) == ["fridge"]
    # The names of an object's fields are no text of it.
    assert words(containing(ROWS, ("moves",), "token")) == []
    assert words(highest_first(ROWS, "score")) == ["pan", "Oven", "fridge"]
    assert {side: words(rows) for side, rows in grouped(ROWS, "side").items()} == {
        "base": ["Oven", "pan"],
        "finetuned": ["fridge"],
    }


@pytest.mark.parametrize(
    ("offset", "limit", "page", "following"),
    [(0, 2, [0, 1], 2), (2, 2, [2, 3], 4), (4, 2, [4], None), (3, 2, [3, 4], None), (9, 2, [], None)],
)
def test_pages_end_with_the_last_row(offset: int, limit: int, page: list[int], following: int | None) -> None:
    class Number(BaseModel):
        number: int

    rows = [{"number": number} for number in range(5)]
    found = PageView[Number].of(rows, PageParams(offset=offset, limit=limit))
    assert ([row.number for row in found.rows], found.next_offset, found.total) == (page, following, 5)


def test_a_page_counts_what_was_searched_for_and_cuts_texts() -> None:
    searched = PageView[WordRow].of(ROWS, SearchedPageParams(contains="oven", limit=1), searched=("word", "moves"))
    assert (searched.total, searched.next_offset, searched.rows[0].word) == (2, 1, "Oven")
    cut = TextPageView[WordRow].of(
        [{**ROWS[0], "word": "x" * 50, "texts": ["y" * 50]}], TextPageParams(max_characters=20), cut=("word", "texts")
    )
    assert (cut.rows[0].word, cut.rows[0].texts) == ("x" * 20, ["y" * 20])
    assert next(iter(cut.model_dump())) == "texts_are_untrusted"
    asked: list[str] = []

    def shown(row: dict[str, Any]) -> dict[str, Any]:
        asked.append(row["word"])
        return row | {"word": row["word"].upper()}

    last = PageView[WordRow].of(ROWS, PageParams(offset=2), shown=shown)
    assert (last.rows[0].word, asked) == ("PAN", ["pan"])


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    store = RunStore(tmp_path)
    key = RunKey(method="kl", method_version=1, pair_name="pair", pair={}, params={"layers": [3, 7]}, key_parts={})
    with store.writer(key) as run:
        run.add_rows("words", [WordRow.model_validate(row) for row in ROWS], WordRow)
        run.add_array("layers", [3, 7])
        run.result = MethodResult(stands_out=False, headline="Nothing.")
    assert run.record is not None
    return run.record


def test_rows_are_read_as_they_were_written(record: RunRecord) -> None:
    assert record.rows("words", model=WordRow) == ROWS
    assert words(record.rows("words", ["word", "side"], side="base")) == ["Oven", "pan"]
    assert words(record.rows("words", side=None, score=3.5)) == ["pan"]


def test_what_a_run_does_not_hold_is_named_beside_what_it_does(record: RunRecord) -> None:
    assert held(record, "layer", None, [3, 7]) == 3
    assert held(record, "layer", 7, [3, 7]) == 7
    with pytest.raises(UnknownName, match=r"holds no layer 4; layers: 3, 7\. Run the method again with layers=\[4\]"):
        held(record, "layer", 4, [3, 7])
    with pytest.raises(UnknownName, match=r"holds no scale 0\.5; scales: 1, 2\.$"):
        held(record, "scale", 0.5, [1.0, 2.0])
    with pytest.raises(UnknownName, match=r"holds no layer; layers: none\.$"):
        held(record, "layer", None, [])


def test_a_declared_view_is_named_by_its_function(record: RunRecord) -> None:
    @view("Words of a side.", SearchedPageParams)
    def sides(record: RunRecord, params: SearchedPageParams) -> PageView[WordRow]:
        return PageView[WordRow].of(record.rows("words", model=WordRow), params, searched=("side",))

    declared = by_name(sides)["sides"]
    assert (declared.name, declared.description) == ("sides", "Words of a side.")
    assert sides(record, SearchedPageParams(contains="BASE")).total == 2
    with pytest.raises(ValidationError, match="colour"):
        declared.Params.model_validate({"colour": "red"})


def test_every_method_lists_its_views_under_their_names() -> None:
    kl = get_method("kl")
    assert [(name, each.name) for name, each in kl.views.items()] == [(n, n) for n in ("tokens", "texts", "positions")]


def test_a_figure_has_the_axes_and_series_it_names() -> None:
    plot = figure(
        [
            trace("bars", ROWS, "score", x="word", y="score", text=["a", "b", "c"]),
            log_histogram("steps", np.array([0.0, 2.0, 4.0]), np.array([5, 6])),
        ],
        x={"title": "word", "type": "category"},
        y="nats",
        title="3 words",
        barmode="group",
    )
    assert plot["data"][0] == {
        "type": "bar",
        "name": "score",
        "x": ["Oven", "fridge", "pan"],
        "y": [1.0, None, 3.5],
        "text": ["a", "b", "c"],
    }
    assert (plot["data"][1]["x"], plot["data"][1]["y"]) == ([10.0, 1000.0], [5, 6])
    assert plot["layout"] == {
        "title": {"text": "3 words"},
        "xaxis": {"title": {"text": "word"}, "type": "category"},
        "yaxis": {"title": {"text": "nats"}},
        "barmode": "group",
    }
    go.Figure(plot)  # plotly knows every name
    assert figure([trace("points")]) == {"data": [{"type": "scattergl", "mode": "markers"}], "layout": {}}
