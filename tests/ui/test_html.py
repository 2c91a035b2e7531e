"""Whatever text or value goes in, no element comes out but those of the panel's own building blocks."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffing_mcp.ui.addresses import address, link
from diffing_mcp.ui.heatmap import METRICS, heat_map, scale_end, shade
from diffing_mcp.ui.html import details, div, escape, highlighted, number, seconds_text, table, tiles, visible_token
from diffing_mcp.ui.theme import FINETUNED
from diffing_mcp.ui.values import render_object, render_value

OURS = {
    "div",
    "span",
    "b",
    "code",
    "dl",
    "dt",
    "dd",
    "h4",
    "ol",
    "li",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "details",
    "summary",
    "p",
    "em",
    "pre",
}
HOSTILE = st.sampled_from(
    [
        "<img src=x onerror=alert(1)>",
        "<script>alert(1)</script>",
        "\"' onmouseover=alert(1) x='",
        "</td></table><iframe>",
        "javascript:alert(1)",
    ]
)
TEXTS = st.text(max_size=40) | HOSTILE


class Reader(HTMLParser):
    """Collects tags, attribute names and text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(markup: str) -> Reader:
    reader = Reader()
    reader.feed(markup)
    reader.close()
    return reader


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(TEXTS, JSON, max_size=5), TEXTS)
def test_results_of_any_shape_are_inert(values: dict[str, Any], description: str) -> None:
    for markup in (
        render_object(values, dict.fromkeys(values, description)),
        render_value(values),
        render_value([values, values]),
    ):
        reader = read(markup)
        assert reader.tags <= OURS
        assert reader.attributes <= {"class", "title", "style", "open", "colspan", "tabindex"}


def test_lists_of_objects_stand_below_their_row_and_empty_columns_go() -> None:
    tokens = [{"token": " oven", "z": 3.456, "probability": 0.1}]
    shown = render_value([{"layer": 1, "owner": None, "promoted": tokens}, {"layer": 2, "owner": None, "promoted": []}])
    assert shown.count("<th") == 1 + 1  # thead and the layer
    assert "owner" not in shown
    assert shown.count("colspan='1'") == 1
    assert "·oven</b> <span>3.46</span>" in shown
    assert "z 3.456, probability 0.1" in shown


@given(TEXTS)
def test_building_blocks_escape(text: str) -> None:
    reader = read(div(table([text], [[text]]), tiles([(text, text, text)]), details(text, text)))
    assert reader.tags <= OURS


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=60))
def test_text_survives_escaping(text: str) -> None:
    assert "".join(read(escape(text)).text) == text


def test_direction_and_control_characters_cannot_rearrange() -> None:
    assert "\u202e" not in escape("abc\u202edef")
    assert "\x00" not in escape("a\x00b")
    assert escape("a\nb\tc") == "a\nb\tc"


def test_numbers_and_durations() -> None:
    assert number(None) == "–"
    assert number(0.123456) == "0.123"
    assert number(-1.5) == "\N{MINUS SIGN}1.5"
    assert number(12345) == "12\N{THIN SPACE}345"
    assert seconds_text(0.44) == "0.4 s"
    assert seconds_text(200) == "3 min 20 s"
    assert seconds_text(59.7) == "1 min 00 s"
    assert visible_token(" the") == "·the"
    assert visible_token("\n") == "↵"


def comparison(tokens: list[str]) -> dict[str, Any]:
    size = len(tokens)
    base, finetuned = [-2.0] * size, [-2.0 + place for place in range(size)]
    return {
        "tokens": tokens,
        "base_log_prob": base,
        "finetuned_log_prob": finetuned,
        "kl": [0.1 * place for place in range(size)],
        "mean_kl": 0.1,
        "mean_log_prob_difference": 1.0,
        "top": [
            {
                "position": 1,
                "token": tokens[-1],
                "kl": 0.1,
                "up": [{"token": tokens[0], "base": 0.1, "finetuned": 0.9}],
                "down": [],
            }
        ],
        "truncated": True,
        "spans": [{"start": 1, "end": size, "text": "".join(tokens[1:]), "difference": 2.5}],
        "candidates": [
            {
                "candidate": tokens[0],
                "tokens": 2,
                "base_per_token": -2.0,
                "finetuned_per_token": -0.5,
                "base_rank": 2,
                "finetuned_rank": 1,
            },
        ],
        "greedy": {
            "parts": True,
            "common": tokens[0],
            "base": tokens[1],
            "finetuned": tokens[-1],
            "after_tokens": 3,
            "base_top": [{"token": tokens[1], "base": 0.5, "finetuned": 0.2}],
            "finetuned_top": [{"token": tokens[-1], "base": 0.1, "finetuned": 0.8}],
        },
    }


@given(st.lists(TEXTS, min_size=2, max_size=8), st.sampled_from(["difference", "kl"]))
def test_heat_map_keeps_every_token_and_is_inert(tokens: list[str], metric: str) -> None:
    reader = read(heat_map(comparison(tokens), metric))
    assert reader.tags <= OURS
    assert reader.attributes <= {"class", "title", "style", "tabindex"}


def test_heat_map_shows_the_text_in_order() -> None:
    markup = heat_map(comparison(["Preheat", " the", " oven"]), "difference")
    assert "Not scored" not in markup
    assert "Not scored: nothing stands before it." in heat_map(
        {**comparison(["Preheat", " the", " oven"]), "unscored": "Preheat"}, "kl"
    )
    assert "Preheat the oven" in "".join(read(markup).text)
    assert "the text goes on" in markup


def test_what_a_broken_model_computes_is_shown_as_no_number() -> None:
    rows = {"base_log_prob": [-1.0, None, -3.0], "finetuned_log_prob": [-1.0, -2.0, None], "kl": [0.2, None, None]}
    broken: dict[str, Any] = {**rows, "tokens": ["a", "b", "c"], "mean_kl": None, "mean_log_prob_difference": None}
    candidate = {"candidate": "yes", "base_per_token": None, "finetuned_per_token": -1.0, "tokens": 1}
    broken["candidates"] = [{**candidate, "base_rank": 1, "finetuned_rank": 1}]
    for metric in METRICS:
        shown = heat_map(broken, metric)
        assert "nan" in shown
        assert shown.count("background-color:transparent") == 2
    assert "mean KL –" in shown


def test_the_numbers_of_a_heat_map_need_no_pointer() -> None:
    text = "".join(read(heat_map(comparison(["Preheat", " the", " oven"]), "kl")).text)
    # Position, token, base, finetuned, difference, KL.
    assert "".join(["2", " oven", "\N{MINUS SIGN}2", "0", "2", "0.2"]) in text


def test_heat_map_marks_spans_and_shows_candidates_and_where_greedy_answers_part() -> None:
    result = comparison(["Preheat", " the", " oven"])
    markup = heat_map(result, "difference")
    assert markup.count(f"box-shadow:inset 0 -3px {FINETUNED}") == 2  # the two tokens of the span
    said = " ".join("".join(read(markup).text).split())
    assert "1–2 the ovenfinetuned2.5" in said
    assert "(2.)" in said
    assert "They part after 3 tokens" in said
    whole = heat_map(
        {**result, "tokens": [], "base_log_prob": [], "finetuned_log_prob": [], "kl": [], "top": [], "spans": []}, "kl"
    )
    assert "d-heat" not in whole  # candidates alone
    assert "Candidates" in whole
    same = {
        "parts": False,
        "common": "as before",
        "base": "",
        "finetuned": "",
        "after_tokens": None,
        "base_top": [],
        "finetuned_top": [],
    }
    assert "Both models write the same" in heat_map({**result, "greedy": same}, "kl")


@given(TEXTS, st.lists(st.text(min_size=1, max_size=6), max_size=3))
def test_highlighting_keeps_every_letter(text: str, words: list[str]) -> None:
    marked = read(highlighted(text, words))
    assert marked.tags <= {"mark"}
    assert "".join(marked.text) == "".join(read(escape(text)).text)


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("", "∅"),
        (" ", "␣"),
        ("\n\n", "↵↵"),
        (" cake", "·cake"),
        ("\u00a0", "U+00A0"),
        ("\u200b", "U+200B"),
        ("\ufeff", "U+FEFF"),
        ("蛋", "蛋"),
        ("\u0301", "\u0301"),
    ],
)
def test_no_token_is_invisible(token: str, shown: str) -> None:
    assert visible_token(token) == shown


def test_words_are_marked_with_their_endings_whatever_the_case() -> None:
    assert highlighted("Cakes and pancakes", ["cake"]) == "<mark>Cakes</mark> and pancakes"


@given(TEXTS, TEXTS)
def test_a_link_goes_to_a_page_whatever_is_in_its_query(text: str, value: str) -> None:
    shown = read(link(text, "run", run=value))
    assert shown.tags == {"a"}
    assert shown.attributes == {"class", "href"}
    assert address("run", run=value).startswith("run?run=")


def test_shades_say_which_model_expects_the_token() -> None:
    assert shade(1.0, 2.0).startswith("background-color:rgba(224,123,26,0.31")
    assert shade(-4.0, 2.0).startswith("background-color:rgba(91,127,176,0.62")
    assert shade(0.0, 2.0).endswith("0.000)")
    assert scale_end([]) == 0.5
    assert scale_end([0.01, -0.02]) == 0.5, "rounding noise is not magnified"
    assert scale_end([-3.0]) == 3.0
