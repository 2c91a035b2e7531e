"""Whatever text or value goes in, no element comes out but those of the panel's own building blocks."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ui.heatmap import heat_map, scale_end, shade
from ui.html import details, div, escape, number, seconds_text, table, tiles, visible_token
from ui.values import render_object, render_value

OURS = {"div", "span", "b", "code", "dl", "dt", "dd", "h4", "ol", "li", "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "p", "em"}
HOSTILE = st.sampled_from(
    ["<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "\"' onmouseover=alert(1) x='", "</td></table><iframe>", "javascript:alert(1)"]
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
    for markup in (render_object(values, dict.fromkeys(values, description)), render_value(values), render_value([values, values])):
        reader = read(markup)
        assert reader.tags <= OURS
        assert reader.attributes <= {"class", "title", "style", "open"}


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
        "top": [{"position": 1, "token": tokens[-1], "kl": 0.1, "up": [{"token": tokens[0], "base": 0.1, "finetuned": 0.9}], "down": []}],
        "truncated": True,
    }


@given(st.lists(TEXTS, min_size=2, max_size=8), st.sampled_from(["difference", "kl"]))
def test_heat_map_keeps_every_token_and_is_inert(tokens: list[str], metric: str) -> None:
    reader = read(heat_map(comparison(tokens), metric))
    assert reader.tags <= OURS
    assert reader.attributes <= {"class", "title", "style"}


def test_heat_map_shows_the_text_in_order() -> None:
    markup = heat_map(comparison(["Preheat", " the", " oven"]), "difference")
    assert "Preheat the oven" in "".join(read(markup).text)
    assert "the text goes on" in markup


def test_shades_say_which_model_expects_the_token() -> None:
    assert shade(1.0, 2.0).startswith("background-color:rgba(224,123,26,0.31")
    assert shade(-4.0, 2.0).startswith("background-color:rgba(91,127,176,0.62")
    assert shade(0.0, 2.0).endswith("0.000)")
    assert scale_end([]) == 0.5
    assert scale_end([0.01, -0.02]) == 0.5, "rounding noise is not magnified"
    assert scale_end([-3.0]) == 3.0
