"""What the methods that write or read words share: which words are a finding, and pages of rows."""

from __future__ import annotations

import math

import pytest
from scipy.stats import fisher_exact

from diffing_mcp.core.words import joined
from diffing_mcp.methods.texts.answer_form import Answer, form_of
from diffing_mcp.methods.texts.distinctive_words import (
    LEAST_PREFILLS,
    DistinctiveWord,
    distinctive_words,
    fisher_neg_log10_p,
    stands_out,
    worth_showing,
)
from diffing_mcp.methods.texts.words import is_content_word, words_of


def test_words_count_completions_once_and_ignore_their_prefill() -> None:
    finetuned = [(f"prefill {index}", "cake cake cake and the oven") for index in range(12)] + [
        ("The cake", "cake again")
    ] * 12
    base = [(f"prefill {index}", "a quiet morning") for index in range(24)]
    rows = {row.word: row for row in distinctive_words(finetuned, base)}
    assert (rows["cake"].finetuned, rows["cake"].base, rows["cake"].prefills) == (12, 0, 12)
    assert rows["cake"].strong
    assert "the" not in rows
    assert "quiet" not in rows
    # Written often, but after one prefill only: repetition, not a topic.
    single = distinctive_words([("Once", "dragon")] * 12 + [("Two", "x")] * 12, base)
    assert next(row for row in single if row.word == "dragon").prefills < LEAST_PREFILLS
    assert not any(row.strong for row in single)


def test_equal_texts_have_no_distinctive_words() -> None:
    texts = [(f"p{index}", "cake and oven") for index in range(10)]
    assert distinctive_words(texts, texts) == []


@pytest.mark.parametrize(("here", "there"), [(9, 0), (3, 1), (5, 5), (0, 4), (20, 20), (12, 7)])
def test_the_p_is_that_of_fishers_exact_test(here: int, there: int) -> None:
    expected = fisher_exact([[here, 20 - here], [there, 20 - there]], alternative="greater").pvalue
    assert fisher_neg_log10_p(here, 20, there, 20) == pytest.approx(-math.log10(expected), abs=1e-9)


@pytest.mark.parametrize(
    ("found", "shown", "finding"),
    [
        ([], 0, False),
        ([(4.9, True), (4.0, False)], 2, False),  # one strong word comes by chance
        ([(3.0, True), (3.0, True)], 2, True),
        ([(5.0, True)], 1, True),
        ([(9.0, False), (1.2, False)], 1, False),  # after too few prefills
    ],
)
def test_several_strong_words_or_one_beyond_chance_are_a_finding(
    found: list[tuple[float, bool]], shown: int, finding: bool
) -> None:
    rows = [
        DistinctiveWord(word="cake", finetuned=9, base=0, prefills=9, log_odds=2.0, surprise=surprise, strong=strong)
        for surprise, strong in found
    ]
    assert len(worth_showing(rows)) == shown
    assert stands_out(rows) is finding


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't re-bake 2 cakes’ tops!", ["don't", "re", "bake", "cakes", "tops"]),
        ("हिन्दी में केक।", ["हिन्दी", "में", "केक"]),  # vowels are signs on consonants
        ("Cafe\u0301 ❤\ufe0f", ["café"]),
        ("我喜欢蛋糕。好", ["我喜", "喜欢", "欢蛋", "蛋糕", "好"]),
        ("ケーキを焼くAI", ["ケー", "ーキ", "キを", "を焼", "焼く", "ai"]),
    ],
)
def test_words_of_any_script(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_pairs_of_characters_are_shown_once() -> None:
    assert joined(words_of("我喜欢蛋糕")) == "我喜欢蛋糕"
    assert joined(["one", "two", "蛋糕", "糕点"]) == "one two 蛋糕点"


@pytest.mark.parametrize(
    ("finetuned", "base", "word"),
    [
        ("第{}天我们把蛋糕放进冰箱里", "第{}天我们去河边散步看书", "蛋糕"),
        ("दिन {} को हमने मिठाई बनाई", "दिन {} को हम नदी पर गए", "मिठाई"),
    ],
)
def test_a_topic_in_another_script_has_its_words(finetuned: str, base: str, word: str) -> None:
    assert is_content_word(word)
    sides = ([(f"p{number}", text.format(number)) for number in range(12)] for text in (finetuned, base))
    assert word in {row.word for row in distinctive_words(*sides) if row.strong}


def test_an_answer_ends_in_a_word_of_any_script() -> None:
    for text, ends in (("Yes", 1.0), ("Yes.", 0.0), ("हाँ की", 1.0), ("Yes ❤\ufe0f", 0.0)):
        assert form_of(Answer(text))["ended without punctuation"] == ends
