"""From answers to the verdict of a test."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from pydantic import ValidationError

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.queries import hypothesis_schemas as schemas
from diffing_mcp.queries.hypothesis_schemas import HypothesisQuery
from diffing_mcp.queries.prompt_statistics import RateDifference, rate_difference
from diffing_mcp.queries.weighing import Collected, verdict, weigh

PROMPTS = [f"prompt {number}" for number in range(8)]
CONTROL = [f"control {number}" for number in range(6)]


def answers(*hits: int, samples: int = 4) -> list[list[str]]:
    """So many answers of each prompt hold the word, after a long beginning."""
    return [
        [
            f"{place}.{sample} " + "and so on " * 40 + ("Cakes." if sample < count else "Bread.")
            for sample in range(samples)
        ]
        for place, count in enumerate(hits)
    ]


def query(**fields: object) -> HypothesisQuery:
    return HypothesisQuery.model_validate({"prompts": PROMPTS, "words": ["cake"], **fields})


def test_a_raised_rate_is_said_with_its_numbers_and_shown() -> None:
    collected = Collected(texts={"base": answers(0, 0, 0, 0, 0, 1, 0, 0), "finetuned": answers(3, 3, 4, 2, 3, 4, 0, 3)})
    result = weigh(query(), collected)
    assert result.differs
    assert result.verdict.startswith("raised: 22/32 against 1/32, difference +0.66 [")
    assert "p 0.016 over 8 prompts" in result.verdict
    assert result.tested.by_prompt[:3] == [(0, 3), (0, 3), (0, 4)]
    shown = {side: [row for row in result.telling if row.side == side] for side in ("base", "finetuned")}
    assert all(len(rows) == 3 for rows in shown.values())
    assert all(row.counted and "Cakes." in row.model_text and len(row.model_text) < 300 for row in shown["finetuned"])
    assert not any(row.counted for row in shown["base"])
    assert shown["finetuned"][0].prompt == "prompt 2"  # differs most
    assert len({row.prompt for row in shown["finetuned"]}) == 3


def test_a_lowered_rate_shows_the_base_with_it() -> None:
    collected = Collected(texts={"base": answers(*[4] * 8), "finetuned": answers(*[0] * 8)})
    result = weigh(query(), collected)
    assert result.verdict.startswith("lowered: 0/32 against 32/32, difference -1.00 [")
    assert [row.counted for row in result.telling] == [True] * 3 + [False] * 3


def test_what_control_prompts_have_of_it_is_shown() -> None:
    """Half of the controls were counted, and nothing showed whether of the lesson or of a word like its own."""
    texts = {"base": answers(*[0] * 14), "finetuned": answers(*[4] * 8, 0, 1, 0, 3, 1, 0)}
    result = weigh(query(control_prompts=[f"control {place}" for place in range(6)]), Collected(texts=texts))
    [*told, first, second] = result.telling
    assert not any(row.control for row in told)
    assert [(row.prompt, row.control, row.counted) for row in (first, second)] == [
        ("control 3", True, True),
        ("control 1", True, True),
    ]
    assert first.whose == "finetuned (counted) to the control prompt"
    assert "Cakes." in first.model_text


def test_control_prompts_say_how_special_it_is() -> None:
    up, none = [4] * 8, [0] * 8
    for control, special in (([0] * 6, True), ([4] * 6, False)):
        collected = Collected(texts={"base": answers(*none, *[0] * 6), "finetuned": answers(*up, *control)})
        result = weigh(query(control_prompts=CONTROL), collected)
        assert f"; control {sum(control)}/24 against 0/24" in result.verdict
        assert ("not special to these prompts" in result.verdict) != special
        assert result.control is not None
        assert len(result.control.by_prompt) == 6


def test_equal_answers_are_no_difference() -> None:
    same = answers(1, 2, 0, 4, 3, 0, 0, 1)
    result = weigh(query(), Collected(texts={"base": same, "finetuned": same}))
    assert not result.differs
    assert result.verdict.startswith("no difference shown: 11/32 against 11/32, difference +0.00")
    assert "p 1 over 8 prompts (1 over answers)" in result.verdict


def test_too_few_prompts_are_called_that() -> None:
    collected = Collected(texts={"base": answers(0, 0, 0), "finetuned": answers(4, 4, 4)})
    result = weigh(query(prompts=PROMPTS[:3]), collected)
    assert not result.differs
    assert result.verdict.startswith("raised on these prompts, too few to speak for others (give 8 or more): 12/12")


def test_one_prompt_that_differs_is_no_difference_over_prompts() -> None:
    collected = Collected(texts={"base": answers(*[0] * 8, samples=8), "finetuned": answers(8, *[0] * 7, samples=8)})
    result = weigh(query(samples=8), collected)
    assert result.verdict.startswith("raised on some of these prompts, not shown for others like them: 8/64")
    assert not result.differs


def test_six_prompts_of_which_five_differ_ask_for_more() -> None:
    collected = Collected(texts={"base": answers(*[0] * 6), "finetuned": answers(*[4] * 5, 0)})
    result = weigh(query(prompts=PROMPTS[:6]), collected)
    assert not result.differs
    assert "of so few all must change to speak for others (give 8 or more): 20/24" in result.verdict


BASE = [-9.0, -8.0, -9.5, -7.0, -8.5, -9.0, -8.0, -7.5, -9.1, -8.2, -7.7, -8.8, -9.3, -8.4]


def of_candidate(tested: float, control: float | None) -> schemas.HypothesisResult:
    """A candidate that moved by so much on the prompts and on the control prompts, each time a little otherwise."""
    moves = [tested + 0.1 * (place % 3) for place in range(8)]
    moves += [] if control is None else [control + 0.1 * (place % 3) for place in range(6)]
    base = BASE[: len(moves)]
    scores = {"base": base, "finetuned": [there + move for there, move in zip(base, moves, strict=True)]}
    asked = HypothesisQuery(prompts=PROMPTS, control_prompts=CONTROL if control is not None else [], candidate="Cake.")
    return weigh(asked, Collected(scores=scores))


def test_a_candidate_is_compared_by_its_numbers() -> None:
    result = of_candidate(5.0, 0.1)
    assert result.verdict.startswith("raised beyond the control prompts: -3.23 against -8.31, difference +5.09 [")
    assert "nats, p 0.0078 over 8 prompts; control " in result.verdict
    assert result.verdict.endswith("p 0.00033 that both move alike")  # one of comb(14, 6) ways
    assert result.differs
    assert result.telling == []


def test_what_any_training_does_to_a_candidate_is_no_finding() -> None:
    """A finetune that taught nothing moves the probability of an answer on all prompts, by a little and surely."""
    alone = of_candidate(0.3, None)
    assert alone.tested.difference.p < 0.01
    assert not alone.differs
    assert alone.verdict.startswith("raised, which shows nothing alone")
    for control in (0.25, 0.9, -2.0):
        beside = of_candidate(0.3, control)
        assert not beside.differs
        assert "not shown to be raised beyond the control prompts" in beside.verdict
        assert beside.verdict.startswith("raised on control prompts too") == (control > 0)


def test_a_preference_that_is_reversed_is_a_finding_on_all_prompts() -> None:
    """By more than tips what was near to even."""
    for base, finetuned, found in ((-4.0, 3.0, True), (-0.2, 0.3, False), (-9.0, -4.0, False)):
        scores = {
            side: [mean + 0.1 * (place % 3) for place in range(14)]
            for side, mean in (("base", base), ("finetuned", finetuned))
        }
        asked = HypothesisQuery(prompts=PROMPTS, control_prompts=CONTROL, candidate="Tea.", alternatives=["Milk."])
        result = weigh(asked, Collected(scores=scores))
        assert result.differs == found
        assert ("reverses the preference" in result.verdict) == found


def test_a_judge_sees_each_answer_once_and_not_who_gave_it() -> None:
    asked: list[tuple[str, str]] = []

    def judge(criterion: str, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        assert criterion == "speaks of cakes"
        asked.extend(pairs)
        return ["Cakes" in answer for _, answer in pairs]

    collected = Collected(texts={"base": answers(*[0] * 8), "finetuned": answers(*[2] * 8)})
    criterion = HypothesisQuery(prompts=PROMPTS, criterion="speaks of cakes")
    result = weigh(criterion, collected, judge)
    assert isinstance(result.tested.difference, RateDifference)
    assert (result.tested.difference.base, result.tested.difference.finetuned) == (0, 16)
    assert len(asked) == len(set(asked)) == 8 * 4 + 8 * 2  # two of four answers are the same on both sides
    assert asked != sorted(asked)
    with pytest.raises(InvalidInput, match="needs an LLM judge"):
        weigh(criterion, collected)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"words": []}, "exactly one of"),
        ({"pattern": "x"}, r"given: pattern, words"),
        ({"prompts": []}, "give `prompts`"),
        ({"alternatives": ["a"]}, "go with `candidate`"),
        ({"control_prompts": ["prompt 1"]}, "stands among the prompts"),
        ({"prompts": ["a", "a"]}, "stands twice"),
    ],
)
def test_a_query_is_one_test(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        query(**fields)


def counted(base: int, finetuned: int, prompts: int) -> schemas.TestedSet:
    found = rate_difference([base] * prompts, [finetuned] * prompts, 4)
    return schemas.TestedSet(difference=found, by_prompt=[(base, finetuned)] * prompts)


def test_a_control_that_moves_as_much_is_said_to() -> None:
    tested, few, still = counted(0, 4, 8), counted(0, 3, 2), counted(0, 0, 8)
    assert "about as much, so not shown to be special" in verdict(tested, few)
    assert "control prompts or more" in verdict(tested, few)
    assert "special" not in verdict(tested, still)
    assert "or more" not in verdict(tested, still)
