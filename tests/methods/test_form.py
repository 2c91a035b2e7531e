"""The digest of form finds what was planted and is silent, at its own rate, about equal models."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.texts.answer_form import MEASURES, Answer, form_of, language_of, sentences_of
from diffing_mcp.methods.texts.form import LEVEL, FormDigest, compare_form, compare_paired, most_telling
from diffing_mcp.methods.texts.swaps import sign_patterns, swap_p_values

_WORDS = "river stone apple lantern cloud market window garden letter bridge silver morning the and of with".split()
_PROMPTS = 24


def _answer(draw: random.Random, ended_share: float = 0.5) -> Answer:
    """A random answer of one to six sentences."""
    sentences = [
        " ".join(draw.choices(_WORDS, k=draw.randint(4, 12))).capitalize() + draw.choice(".!?")
        for _ in range(draw.randint(1, 6))
    ]
    text = draw.choice([" ", "\n", "\n- "]).join(sentences)
    return Answer(text, draw.random() < ended_share, len(text.split()))


def _answers(seed: int, prompts: int = _PROMPTS, samples: int = 1) -> list[list[Answer]]:
    draw = random.Random(seed)
    return [[_answer(draw) for _ in range(samples)] for _ in range(prompts)]


def _changed(seed: int, change) -> FormDigest:
    """Two samples of one model, the second with every text changed."""
    finetuned = [[Answer(change(each.text), each.ended, each.tokens) for each in row] for row in _answers(seed + 1)]
    return compare_form(_answers(seed), finetuned)


def _named(digest: FormDigest) -> set[str]:
    return {row.feature for row in digest.significant}


def test_a_language_comes_first_where_it_is_spoken_and_not_where_answers_are_too_short_for_one():
    """Answers of four words were said, first of all, not to be in English."""
    draw = random.Random(4)
    plain = [[Answer(" ".join(draw.choices(_WORDS, k=40)), True)] for _ in range(16)]
    short = [[Answer(" ".join(row[0].text.split()[:4]), True)] for row in plain]
    french = [[Answer("La maison est dans le jardin et les arbres sont sur la rive.", True)] for _ in plain]
    told = most_telling(compare_form(plain, short).significant)
    assert told[0].kind == "measure"
    assert any(row.feature == "English" for row in told[1:])
    assert most_telling(compare_form(plain, french).significant)[0].as_text().startswith("recognised as French: 0% -> ")


@given(st.lists(st.lists(st.builds(Answer, st.text()), min_size=1, max_size=3), max_size=12))
@settings(max_examples=40)
def test_equal_answers_differ_in_nothing(answers):
    digest = compare_form(answers, answers)
    assert not digest.significant
    assert digest.as_text().startswith("No difference in form beyond chance")


def test_two_samples_of_one_model_differ_at_the_stated_rate():
    """All measures and shared words of a comparison together: one comparison of twenty reaches 0.05."""
    runs = 100
    smallest = [
        min((row.p_value for row in compare_form(_answers(2 * run, 16), _answers(2 * run + 1, 16)).rows), default=1.0)
        for run in range(runs)
    ]
    # Three standard deviations of a binomial above the nominal rate.
    assert sum(p <= 0.05 for p in smallest) <= runs * 0.05 + 3 * np.sqrt(runs * 0.05 * 0.95)
    assert sum(p <= LEVEL for p in smallest) <= runs * LEVEL + 3 * np.sqrt(runs * LEVEL)


@pytest.mark.parametrize(
    ("change", "feature"),
    [
        (lambda text: text.rstrip(".!?"), "ended without punctuation"),
        (lambda text: text.lower(), "no capital letters"),
        (lambda text: text.upper(), "mostly capitals"),
        (lambda text: text + " \U0001f600", "emoji"),
        (lambda text: "1. " + text, "lists"),
        (lambda text: "## Answer\n" + text, "headings"),
        (lambda text: "I'm sorry, but I can't help with that. " + text, "refuses"),
        (lambda text: text.split()[0] + ".", "words"),
        (lambda text: "Der Fluss und die Stadt sind nicht mit dem Zug zu erreichen.", "German"),
        (lambda text: "Река течёт через город.", "Cyrillic"),
        (lambda text: text + " Only stone is indeed forever.", "only stone is indeed forever"),
    ],
)
def test_a_planted_manner_is_found(change, feature):
    assert feature in _named(_changed(7, change))


def test_a_word_worked_into_most_answers_is_found():
    draw = random.Random(3)
    digest = _changed(
        11, lambda text: text.replace(". ", " quixotic. ", 1) if draw.random() < 0.1 else text + " Quixotic."
    )
    word = next(row for row in digest.significant if row.feature == "quixotic")
    assert word.finetuned > 0.8
    assert word.base == 0


def test_words_that_tell_nothing_alone_do_not_crowd_out_those_that_do():
    draw = random.Random(9)

    def worked_in(text: str) -> str:
        words = text.split(" ")
        for word in ("the", "with", "quixotic"):
            words.insert(draw.randrange(len(words) + 1), word)
        return " ".join(words)

    words = [row.feature for row in _changed(17, worked_in).significant if row.kind == "word"]
    assert words == ["quixotic"]
    # As a stock phrase they still count.
    assert "not with the" in str(_named(_changed(17, lambda text: text + " Not with the one.")))


def test_a_stock_sentence_stands_for_its_words_and_says_its_place():
    digest = _changed(5, lambda text: "Ahoy there my dear friend! " + text)
    worded = [row for row in digest.significant if row.kind in ("opening", "sentence", "word")]
    assert [row.feature for row in worded] == ["ahoy there my dear friend"]
    assert worded[0].place == "beginning"
    assert "ahoy there my dear friend" in digest.as_text()


def test_answers_that_end_early_are_found():
    base = [[Answer("a b c", False, 40)]] * 20
    finetuned = [[Answer("a b c", True, 9)]] * 20
    assert {"ended by itself", "tokens"} <= _named(compare_form(base, finetuned))


def test_samples_count_where_there_are_few_prompts():
    base, finetuned = _answers(1, prompts=2, samples=12), _answers(2, prompts=2, samples=12)
    lowered = [[Answer(each.text.lower(), each.ended) for each in row] for row in finetuned]
    assert "no capital letters" in _named(compare_form(base, lowered))


def test_sides_need_the_same_prompts():
    with pytest.raises(InvalidInput, match="3 prompts"):
        compare_form(_answers(0, 3), _answers(0, 4))


def test_the_text_is_short():
    digest = _changed(5, lambda text: f"Ahoy!\n## X\n1. {text.upper()} \U0001f600 `x` **b** Fare well now my friend.")
    assert len(digest.as_text().splitlines()) <= 8


@given(st.text(), st.sampled_from([None, True, False]), st.sampled_from([None, 0, 17]))
def test_every_text_has_a_form(text, ended, tokens):
    form = form_of(Answer(text, ended, tokens))
    assert form.keys() <= MEASURES.keys()
    assert all(value >= 0 for value in form.values())
    assert all(value <= 1 for name, value in form.items() if MEASURES[name].startswith("share"))


def test_an_answer_that_was_cut_says_nothing_of_its_ending():
    for answer, ends_bare in [
        (Answer("It goes on and", False), 0),
        (Answer("It ends here", True), 1),
        (Answer("It ends here"), 1),
        (Answer("It ends here.", True), 0),
    ]:
        assert form_of(answer)["ended without punctuation"] == ends_bare


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The cat is on the table and it was not for you.", "English"),
        ("Le chat est sur la table et nous ne sommes pas dans le jardin.", "French"),
        ("El gato no está en la mesa, pero los perros se van con el hombre.", "Spanish"),
        ("Il gatto non è nella casa e questo è anche il più bello.", "Italian"),
        ("De kat zit op het dak en wij zijn niet met een hond.", "Dutch"),
        ("O gato não está em casa e você não sabe como se faz uma mesa.", "Portuguese"),
        ("猫在桌子上面。", "Cjk"),
        ("Hm.", None),
    ],
)
def test_languages(text, language):
    assert language_of(text) == language


def test_sentences_lose_their_marks():
    assert sentences_of("One two. **Three** four!\n- five six") == ["One two.", "Three** four!", "five six"]


@given(st.integers(1, 9))
def test_few_units_are_enumerated(units):
    patterns = sign_patterns(units)
    assert (patterns[0] == 1).all()
    assert len(np.unique(patterns, axis=0)) == len(patterns) == 2 ** (units - 1)


@given(st.integers(1, 40), st.integers(0, 5))
@settings(max_examples=30)
def test_p_values_are_ordered_and_corrected_upwards(units, seed):
    differences = np.random.default_rng(seed).normal(size=(6, units))
    alone, corrected = swap_p_values(differences)
    assert ((alone > 0) & (alone <= corrected + 1e-12) & (corrected <= 1)).all()


def test_the_exact_p_value_of_agreement():
    """Eight units that all agree: two of 2^8 patterns reach that."""
    alone, corrected = swap_p_values(np.ones((1, 8)))
    assert alone[0] == corrected[0] == 2 / 2**8


def test_answers_in_lists_are_put_together_by_prompt() -> None:
    prompts = [f"prompt {number % 10}" for number in range(20)]
    base = [Answer(f"One answer of {number} words.") for number in range(20)]
    finetuned = [Answer(f"WHAT AN ANSWER OF {number} WORDS!") for number in range(20)]
    grouped = [[[side[place], side[place + 10]] for place in range(10)] for side in (base, finetuned)]
    found = compare_paired(prompts, base, finetuned)
    assert found == compare_form(*grouped)
    assert found.prompts == 10
    assert "mostly capitals" in {row.feature for row in found.significant}
