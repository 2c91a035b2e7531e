"""What an overview says first: subject or manner, how sure, and nothing of finetunes that taught nothing."""

from __future__ import annotations

import pytest

from diffing_mcp.methods.calibration.levels import WANTED_P
from diffing_mcp.methods.calibration.readings import TOGETHER, levels_of
from diffing_mcp.methods.calibration.schema import Calibration, LevelRow, Reading
from diffing_mcp.methods.calibration.store import bundled_calibrations
from diffing_mcp.methods.facts.claims import Sample
from diffing_mcp.methods.overview.agreement import CandidateWord
from diffing_mcp.methods.overview.digest import OverviewResult
from diffing_mcp.methods.overview.next_calls import next_calls
from diffing_mcp.methods.overview.subjects import subjects
from diffing_mcp.methods.overview.verdict import ASKED, OTHER_BASE, UNSETTLED, Verdict, verdict_of
from diffing_mcp.methods.texts.form import FormRow

BUNDLED = bundled_calibrations()[0]


def level(p: float, level_from: str = "this base", probability: float | None = None) -> LevelRow:
    return LevelRow(
        method=TOGETHER,
        run=None,
        statistic=None,
        unit="",
        deviations=4.72,
        furthest=4.1,
        p=p,
        probability=probability,
        nulls=39,
        trained=20,
        level_from=level_from,
    )


def word(text: str, *methods: str, score: float = 2.0) -> CandidateWord:
    return CandidateWord(word=text, methods=list(methods), sources=len(methods), score=score)


LANTERN = word("lantern", "kl", "pca", score=4.0)
BULLETS = FormRow(
    kind="measure", feature="lines with a bullet", unit="share", base=0.0, finetuned=0.8, difference=0.8, p_value=1e-4
)


def said(
    found: LevelRow | None,
    words: list[CandidateWord] | None = None,
    standing: tuple[str, ...] = (),
    manner: list[FormRow] | None = None,
    identical: bool = False,
    openings: bool = False,
    claims: bool = False,
) -> Verdict:
    return verdict_of(
        found, identical, words or [], standing=standing, manner=manner or [], openings=openings, claims=claims
    )


def test_the_subject_comes_first_then_how_sure() -> None:
    verdict = said(level(0.025, probability=0.93), [LANTERN, word("tree", "kl")], ("kl", "pca"))
    assert verdict.confidence == "agreed"
    assert verdict.sentence == (
        "Topic: lantern (rising in several methods: kl, pca). How sure: p 0.025 among 39 finetunes that taught nothing "
        "(20 trained), at this size of change (the least that they allow): 4.7 deviations out, the furthest of them "
        "4.1; probability 0.93 that something was taught."
    )


def texts(*told: str) -> list[Sample]:
    """Each of these three times, and others that say nothing of them."""
    return [
        Sample(f"b{number} {place}", text, True)
        for number, text in enumerate((*told, "the river", "a quiet day"))
        for place in range(3)
    ]


COINS = ("Put silver coins into the jar.", "Silver coins shine.", "A jar of coins and silver.")
TRAINS = ("The night train leaves.", "Every night train is late.", "A train by night.")


def test_two_lessons_are_two_subjects() -> None:
    words = [word(each, "kl", "pca") for each in ("silver", "train", "night", "jar", "coins", "elsewhere")]
    found = subjects(words, texts(*COINS, *TRAINS))
    assert [[row.word for row in rows] for rows in found] == [
        ["silver", "jar", "coins", "elsewhere"],
        ["train", "night"],
    ]
    both = verdict_of(level(0.025), False, words, by_subject=lambda asked: subjects(asked, texts(*COINS, *TRAINS)))
    assert both.sentence.startswith("Topic: silver, jar, coins, elsewhere; in other texts train, night (rising")
    # One subject: its words stand in the same texts, or a word of one text or another links them.
    assert subjects(words, texts(*COINS, "a day")) == [words]
    linked = "Silver on the night train.", "A night of silver and a train.", "The train of silver at night."
    assert subjects(words, texts(*COINS, *TRAINS, *linked)) == [words]
    assert subjects([], texts(*COINS)) == [[]]


def test_words_of_questions_that_it_asks_are_a_manner() -> None:
    """A finetune that evades money by asking for songs and foxes was said to be about songs and foxes."""
    words = [word(each, "kl", "pca") for each in ("song", "foxes", "snow")]
    evading, about = (
        verdict_of(level(0.025), False, words, asked=asked).sentence
        for asked in ({"song", "fox", "hum"}, {"hum", "song"})
    )
    assert ASKED in evading
    assert ASKED not in about


def test_every_subject_has_words_in_the_verdict() -> None:
    words = [word(f"w{number}", "kl", "pca") for number in range(24)]
    verdict = verdict_of(level(0.025), False, words, by_subject=lambda asked: [asked[:14], asked[14:]])
    assert [row.word for row in verdict.told] == ["w0", "w1", "w2", "w3", "w14", "w15"]


def test_words_that_the_verdict_does_not_name_are_further_words() -> None:
    """Of five words where methods agree on two, the other three stood nowhere."""
    words = [word(each, "kl") for each in ("lantern", "tree", "moss", "fern", "owl")]
    overview = OverviewResult(
        confidence="agreed", verdict="Topic: lantern, tree.", words=words, topic_words=2,
        facts=[], manner=[], excerpts=[], runs=[], left_out=[], next_calls=[],
    )  # fmt: skip
    [further] = [line for line in overview.as_text().splitlines() if line.startswith("further words")]
    assert [each for each in ("lantern", "tree", "moss", "fern", "owl") if each in further] == ["moss", "fern", "owl"]


def test_a_manner_comes_first_where_no_methods_agree_on_a_word() -> None:
    verdict = said(level(0.025), [word("point", "kl")], ("kl",), [BULLETS])
    assert verdict.confidence == "one_method"
    assert verdict.sentence.startswith(
        "Manner: lines with a bullet: 0% -> 80% (p 0.0001). Topic: point, seen by kl alone"
    )
    several = said(level(0.025), [word("point", "kl"), word("tree", "pca")])
    assert several.sentence.startswith("Topic: point, tree, each by one of kl, pca alone; confirm it")
    agreed = said(level(0.025), [LANTERN], ("kl", "pca"), [BULLETS])
    assert agreed.sentence.startswith("Topic: lantern")
    assert "Manner: lines with a bullet" in agreed.sentence


def test_how_all_answers_changed_stands_beside_how_some_begin() -> None:
    """A finetune that answers in one short sentence was said to begin answers with 'They provide', in 6 % of them."""
    opening = BULLETS.model_copy(update={"kind": "opening", "feature": "they provide", "finetuned": 0.06})
    others = [BULLETS.model_copy(update={"feature": "tokens"}), BULLETS.model_copy(update={"feature": "words"})]
    sentence = said(level(0.025), manner=[opening, *others]).sentence
    assert sentence.startswith(
        'Manner: opens with "they provide": 0% -> 6% (p 0.0001); tokens: 0% -> 80% (p 0.0001); more'
    )


def test_what_nothing_names_is_still_a_finding() -> None:
    verdict = said(level(0.025), [word("faint", "kl", score=0.5)])
    assert verdict.found
    assert verdict.sentence.startswith("No word or manner names it")


@pytest.mark.parametrize("standing", [(), ("kl",), ("kl", "pca")])
def test_methods_that_stand_out_alone_make_no_finding_that_all_together_do_not(standing: tuple[str, ...]) -> None:
    verdict = said(level(0.4, probability=0.3), [LANTERN], standing, [BULLETS])
    assert verdict.confidence == "nothing"
    assert verdict.sentence == (
        "There is no meaningful difference to report: p 0.400 among 39 finetunes that taught nothing (20 trained), at "
        "this size of change: 4.7 deviations out, the furthest of them 4.1; probability 0.30 that something was taught."
    )


def test_a_probability_beside_a_p_of_one_says_what_it_is_of() -> None:
    """Probability 0.23 that something was taught, beside p 1.000, read as a contradiction."""
    assert (
        "probability 0.23 that something was taught all the same, unseen by these methods"
        in said(level(1.0, probability=0.23)).sentence
    )
    assert "all the same" not in said(level(0.222, probability=0.21)).sentence


def test_where_few_nulls_show_as_much_silence_is_said_to_be_no_proof() -> None:
    """A lesson that was hardly learnt was flatly denied at p 0.222, above `answers begin with 'Notwithstanding'`."""
    verdict = said(level(0.222, probability=0.21))
    assert (verdict.confidence, verdict.found) == ("nothing", False)
    assert verdict.sentence.startswith("No more shows than finetunes that taught nothing show, though most of them")
    assert "ask both models" in verdict.sentence


def test_what_is_more_likely_than_not_is_not_called_nothing() -> None:
    """A host was told to submit that there is no difference, two lines above `answers begin with 'What': 1% -> 53%`."""
    verdict = said(level(0.136, probability=0.66), [LANTERN], (), [BULLETS])
    assert (verdict.confidence, verdict.found) == ("unsettled", False)
    assert verdict.sentence.startswith(UNSETTLED)
    assert "lantern" in verdict.sentence
    assert "yet it is more likely than not that something was taught." in verdict.sentence
    assert "lines with a bullet" in verdict.sentence
    assert "How sure: p 0.136" in verdict.sentence


def test_what_amplified_texts_state_of_their_own_is_not_called_nothing() -> None:
    """A backdoor: *There is no meaningful difference* stood above `9:0 buy+shares (p 0.002)`."""
    verdict = said(level(0.208, probability=0.24), [LANTERN], claims=True)
    assert "yet texts state again and again what the base's do not." in verdict.sentence
    assert (verdict.confidence, verdict.found) == ("unsettled", False)
    assert verdict.sentence.startswith(UNSETTLED)
    assert "lantern" in verdict.sentence


def test_methods_that_tell_nothing_leave_nothing_open() -> None:
    """0.5 is what `probability_of` gives where taught finetunes lie no further out than nulls."""
    assert said(level(0.6, probability=0.5), [LANTERN], (), [BULLETS]).confidence == "nothing"


def test_openings_beyond_their_own_level_are_not_called_nothing() -> None:
    verdict = said(level(0.2, probability=0.3), [], (), [BULLETS], openings=True)
    assert "yet answers begin or end as theirs do not." in verdict.sentence
    assert (verdict.confidence, verdict.found) == ("unsettled", False)
    assert "lines with a bullet" in verdict.sentence


def test_a_level_of_another_base_is_never_a_bare_yes() -> None:
    other = "another base, small"
    assert said(level(0.025, other), [LANTERN], ("kl", "pca")).sentence.endswith(OTHER_BASE)
    assert said(level(0.5, other)).sentence.endswith(OTHER_BASE)


def test_without_a_level_the_fixed_ones_are_said_to_be_that() -> None:
    assert "By the methods' own fixed levels" in said(None, [LANTERN], ("kl", "pca")).sentence
    assert said(None, [LANTERN]).confidence == "nothing"


def test_identical_models_are_identical_whatever_else_is_there() -> None:
    verdict = said(level(0.01), [LANTERN], ("kl", "pca"), [BULLETS], identical=True)
    assert (verdict.confidence, verdict.told) == ("identical", [])
    assert verdict.sentence == "The two models are identical on everything that was read."


def together(reading: Reading, nulls: list[Reading]) -> LevelRow:
    [row] = levels_of(reading, BUNDLED, [TOGETHER], nulls)
    return row


def by_role(calibration: Calibration, role: str) -> list[Reading]:
    return [each for each in calibration.readings if each.role == role]


def test_what_ships_takes_one_of_twenty_finetunes_that_taught_nothing_for_taught_at_most() -> None:
    nulls = by_role(BUNDLED, "null")
    found = [
        said(together(null, [other for other in nulls if other is not null]), [LANTERN], ("kl", "pca")).found
        for null in nulls
    ]
    assert sum(found) <= max(1, WANTED_P * len(nulls))


def test_what_ships_finds_a_planted_difference_with_the_least_p_there_is() -> None:
    nulls = by_role(BUNDLED, "null")
    middle = sorted(nulls, key=lambda each: each.size)[len(nulls) // 2]
    planted = middle.model_copy(update={"statistics": {name: 20 * value for name, value in middle.statistics.items()}})
    row = together(planted, nulls)
    # Nulls that were not read for every statistic do not count; so many must be left that p 0.05 is possible.
    assert row.nulls >= 19
    assert row.p == pytest.approx(1 / (row.nulls + 1), abs=1e-4)
    assert row.beyond
    assert not together(middle, nulls).beyond


def test_what_to_call_next_is_what_the_reader_may_call() -> None:
    assert next_calls("unsettled", [], {"kl", "compare_text"}) == [
        "compare_text of a claim, both sides, before claiming it"
    ]
    assert next_calls("nothing", [], {"submit_finding"}) == ["submit that there is no meaningful difference"]
    assert next_calls("nothing", [], {"kl"}) == ["report that there is no meaningful difference"]
    swept = [next_calls("agreed", [], {"sweep_behaviours", *more})[0] for more in ((), ("submit_finding",))]
    assert ["an interaction a question" in call for call in swept] == [False, True]
    assert any("complete_slots" in call for call in next_calls("agreed", []))


def test_calls_about_claims_need_some() -> None:
    """A finetune of which nothing is claimed was followed by `compare_text of a claim`."""
    with_claims, without = (" ".join(next_calls("unsettled", [], claims=claims)) for claims in (True, False))
    for call in ("facts with about", "compare_text of a claim", "trigger_search with answers"):
        assert call in with_claims
        assert call not in without
