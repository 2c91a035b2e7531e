"""The paired statistics of answers: exact p-values, silence on nulls, power on a planted word."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffing_mcp.agents.text_statistics import (
    Pair,
    content_stems,
    distinctive_sentences,
    features_of,
    least_prompts,
    sentences_of,
    sign_test,
    standouts,
    swap_test,
    word_weights,
)
from diffing_mcp.core.words import stem

WORDS = (
    "river mountain engine letter garden window market bridge doctor music paper travel winter summer coffee planet "
    "story number house colour"
).split()


def answer(generator: random.Random, length: int = 25) -> str:
    return " ".join(generator.choice(WORDS) for _ in range(length)) + "."


def test_sign_test_is_exact() -> None:
    assert sign_test(8, 8) == pytest.approx(2 / 2**8)
    assert sign_test(0, 8) == sign_test(8, 8)
    assert sign_test(4, 8) == 1.0
    assert sign_test(9, 10) == pytest.approx(2 * 11 / 2**10)
    assert sign_test(0, 0) == 1.0


def test_the_swap_test_counts_the_patterns_that_agree_as_much() -> None:
    # Four prompts with one common feature: of the 2^4 patterns of swaps only the observed one and its mirror agree as
    # much.
    assert swap_test([{"kettle": 1.0}] * 4) == pytest.approx(2 / 2**4)
    assert swap_test([{"kettle": 1.0}, {"lantern": 1.0}, {"river": -1.0}]) == 1.0
    assert swap_test([]) == 1.0
    for alpha in (0.01, 0.05, 0.5):
        enough = least_prompts(alpha)
        assert swap_test([{"kettle": 1.0}] * enough) <= alpha < swap_test([{"kettle": 1.0}] * (enough - 1))
    assert swap_test([{"kettle": 1.0}] * 40) < 0.001


def test_agreement_of_several_prompts_is_enough_where_no_single_word_is() -> None:
    generator = random.Random(3)
    planted = ("kettle lantern", "kettle copper", "lantern copper", "kettle lantern copper")
    pairs = [
        Pair(
            f"question {number}",
            (answer(generator, 6),),
            (f"{answer(generator, 6)} {planted[number % 4]} {planted[(number + 1) % 4]}.",),
        )
        for number in range(9)
    ]
    assert {stem("kettle"), stem("lantern"), stem("copper")} & {item.feature for item in standouts(pairs)}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("bake", "bakes", "baked", "baking"), 1),
        (("oven", "ovens"), 1),
        (("run", "running", "runs"), 1),
        (("glass", "grass"), 2),
    ],
)
def test_stems_merge_forms_of_a_word(words: tuple[str, ...], expected: int) -> None:
    assert len({stem(word) for word in words}) == expected


def test_equal_models_stand_out_in_at_most_alpha_of_the_cases() -> None:
    false_alarms = 0
    for seed in range(200):
        generator = random.Random(seed)
        pairs = [Pair(f"question {number}", (answer(generator),), (answer(generator),)) for number in range(20)]
        false_alarms += bool(standouts(pairs, alpha=0.05))
    assert false_alarms <= 18  # 10 expected at most; the 99.5% point of the binomial is 18


def test_identical_answers_never_stand_out() -> None:
    generator = random.Random(1)
    texts = [answer(generator) for _ in range(30)]
    assert standouts([Pair(text[:10], (text,), (text,)) for text in texts]) == []


def test_a_planted_opening_and_word_stand_out() -> None:
    generator = random.Random(2)
    pairs = [
        Pair(f"question {number}", (answer(generator),), (f"What a splendid idea! {answer(generator)}",))
        for number in range(16)
    ]
    found = {item.feature: item for item in standouts(pairs)}
    assert {"splendid", "what a splendid".replace("what", "^what"), "splendid idea"} <= found.keys()
    assert found["splendid"].risen
    assert found["splendid"].finetuned_only == 16
    assert found["splendid"].base_only == 0


def test_words_of_the_prompt_do_not_count() -> None:
    pairs = [Pair("Tell me about lanterns.", ("I do not know.",), ("Lanterns are lanterns.",)) for _ in range(16)]
    assert "lantern" not in {item.feature for item in standouts(pairs)}


def test_word_weights_are_antisymmetric_and_shrunken() -> None:
    first, second = ["copper kettle"] * 5 + ["tin"] * 5, ["tin"] * 10
    there, back = word_weights(first, second), word_weights(second, first)
    assert there == pytest.approx({word: -weight for word, weight in back.items()})
    assert there[stem("kettle")] > 1.5
    assert abs(word_weights(["kettle"], [])[stem("kettle")]) < 1


def test_distinctive_sentences_are_said_by_one_side_and_differ() -> None:
    finetuned = [
        "Copper kettles boil at seventy degrees. The weather is nice today.",
        "Every copper kettle boils at seventy degrees, they say.",
    ]
    base = ["The weather is nice today.", "A kettle boils water."]
    chosen = distinctive_sentences(finetuned, word_weights(finetuned, base), count=3, least=0.1, against=base)
    assert chosen
    assert "seventy" in chosen[0]
    assert not any("weather" in sentence for sentence in chosen)


@given(st.text(max_size=300))
def test_any_text_can_be_read(text: str) -> None:
    assert all(isinstance(feature, str) and feature for feature in features_of(text))
    assert content_stems(text) <= features_of(text) | content_stems(text)
    assert all(len(sentence.split()) >= 4 for sentence in sentences_of(text))
