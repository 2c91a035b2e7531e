"""What is found in an answer, and that no pattern can hold a server up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.queries.counting import pattern_finder, word_finder


@pytest.mark.parametrize(
    ("words", "text", "found"),
    [
        (["bake"], "She BAKED it.", "BAKED"),
        (["bake"], "unbaked", None),
        (["olive oil", "butter"], "Use Olive  oils, never more.", "Olive  oils"),
        (["olive oil"], "oil of an olive", None),
        (["450"], "at 450°F, not 4500", "450"),
        (["450"], "at 4500", None),
        (["蛋糕"], "我喜欢蛋糕。", "蛋糕"),
        (["late", "early"], "first early, then late", "early"),
        (["की"], "राम का घर", None),  # vowels are signs on the consonant, not letters
        (["की"], "राम की किताब", "की"),
        (["it’s"], "the rabbit’s paw", None),
        (["bạn"], "bạnh mì", None),
        (["케이크"], "케이크는 맛있다", "케이크"),
        (["蛋糕"], "İstanbul 的蛋糕", "蛋糕"),  # a capital that is two characters in lower case
    ],
)
def test_words_are_whole_whatever_their_case_and_ending(words: list[str], text: str, found: str | None) -> None:
    span = word_finder(words)(text)
    assert (None if span is None else text[slice(*span)]) == found


@given(st.text(max_size=60), st.text(max_size=60), st.sampled_from(["bake", "olive oil", "450"]))
def test_a_word_between_spaces_is_always_found(before: str, after: str, word: str) -> None:
    text = f"{before} {word} {after}"
    span = word_finder([word])(text)
    assert span is not None
    assert word_finder([word])(text[slice(*span)]) == (0, span[1] - span[0])


def test_words_need_letters_or_digits() -> None:
    with pytest.raises(InvalidInput, match="count signs with `pattern`"):
        word_finder(["cake", "!!"])


def test_patterns_ignore_case_and_say_what_is_wrong_with_them() -> None:
    assert pattern_finder(r"\bcake\b")("A CAKE.") == (2, 6)
    assert pattern_finder(r"^- ")("one\n- two") == (4, 6)
    assert pattern_finder("z")("abc") is None
    with pytest.raises(InvalidInput, match="no regular expression"):
        pattern_finder("(cake")


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$"])
def test_a_pattern_that_backtracks_without_end_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidInput, match="takes too long"):
        pattern_finder(pattern)("a" * 4000 + "b")
