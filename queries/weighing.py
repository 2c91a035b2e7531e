"""From the answers of both models to what a test of a hypothesis says. Torch-free."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.text import clip
from diffing_mcp.queries.counting import Finder, pattern_finder, word_finder
from diffing_mcp.queries.hypothesis_schemas import HypothesisQuery, HypothesisResult, Judge, TellingAnswer, TestedSet
from diffing_mcp.queries.prompt_statistics import (
    ENOUGH_PROMPTS,
    FEWEST_PROMPTS,
    LEVEL,
    MeanDifference,
    RateDifference,
    apart_p,
    mean_difference,
    rate_difference,
)
from diffing_mcp.queries.schemas import SideName

TELLING = 3
"""Answers of each side that are shown."""
TELLING_CONTROL = 2
"""Answers to control prompts that are shown besides."""
REVERSAL = 3.0
"""Nats, twenty times: a preference that is reversed by less may have been near to even, where any training tips it."""
_SHOWN = 240
_SIDES: tuple[SideName, SideName] = ("base", "finetuned")

Span = tuple[int, int]


@dataclass(frozen=True)
class Collected:
    """What the models gave for each question (`HypothesisQuery.questions`): texts of the answers, or a number."""

    texts: Mapping[SideName, list[list[str]]] = field(default_factory=dict)
    scores: Mapping[SideName, list[float]] = field(default_factory=dict)


def finder_of(query: HypothesisQuery) -> Finder | None:
    """What finds `pattern` or `words`; None for other ways to count.

    Raises:
        InvalidInput: a pattern or word that cannot be counted.
    """
    if query.pattern is not None:
        return pattern_finder(query.pattern)
    return word_finder(query.words) if query.words else None


def weigh(query: HypothesisQuery, collected: Collected, judge: Judge | None = None) -> HypothesisResult:
    """The result of a test.

    Raises:
        InvalidInput: a criterion without a judge, or a pattern that takes too long.
    """
    size = len(query.prompts)
    telling: list[TellingAnswer] = []
    if query.candidate is not None:
        scores = list(zip(collected.scores["base"], collected.scores["finetuned"], strict=True))
        sets = [_of_scores(part) for part in (scores[:size], scores[size:]) if part]
    else:
        found = _found(query, collected, judge)
        both = zip(found["base"], found["finetuned"], strict=True)
        counts = [(len(_hits(there)), len(_hits(here))) for there, here in both]
        sets = [_of_counts(part, query.samples) for part in (counts[:size], counts[size:]) if part]
        telling = _telling(query, collected.texts, found, counts)
    tested, control = sets[0], sets[1] if query.control_prompts else None
    if query.candidate is not None:
        return _of_candidate(query, tested, control)
    return HypothesisResult(
        counted=query.counted,
        verdict=verdict(tested, control),
        differs=tested.difference.p < LEVEL,
        tested=tested,
        control=control,
        telling=telling,
    )


def _of_candidate(query: HypothesisQuery, tested: TestedSet, control: TestedSet | None) -> HypothesisResult:
    """Any further training moves the probability of any answer, on all prompts alike: over prompts p is small of a
    finetune that taught nothing. A finding is what moves more than on the control prompts, or a preference between the
    candidate and its alternatives that is reversed.
    """
    difference = tested.difference
    moved, word = difference.p < LEVEL, "raised" if difference.difference > 0 else "lowered"
    turned = bool(query.alternatives) and difference.base * difference.finetuned < 0
    turned = moved and turned and abs(difference.difference) >= REVERSAL
    apart, special, more = None, False, ""
    if control is not None:
        apart = apart_p(*([here - there for there, here in each.by_prompt] for each in (tested, control)))
        further = abs(difference.difference) > abs(control.difference.difference)
        special = moved and further and apart < LEVEL
        more = f"; control {_numbers(control.difference)}; p {apart:.2g} that both move alike"
    if special:
        said = f"{word} beyond the control prompts"
    elif turned:
        said = f"{word}, which reverses the preference"
    elif control is not None:
        alike = moved and control.difference.p < LEVEL and difference.difference * control.difference.difference > 0
        said = f"{word} on control prompts too, " if alike else ""
        said += f"not shown to be {word} beyond the control prompts"
    elif moved:
        said = f"{word}, which shows nothing alone, as any training does it (give {ENOUGH_PROMPTS} control prompts)"
    else:
        said = "no difference shown"
    if difference.prompts < FEWEST_PROMPTS:
        said += f" (fewer than {FEWEST_PROMPTS} prompts cannot show one)"
    return HypothesisResult(
        counted=query.counted,
        verdict=f"{said}: {_numbers(difference)}{more}",
        differs=special or turned,
        tested=tested,
        control=control,
        control_p=apart,
    )


def verdict(tested: TestedSet, control: TestedSet | None) -> str:
    """One line of what was counted: raised, lowered or no difference shown, with the numbers of both sets."""
    difference = tested.difference
    word = "raised" if difference.difference > 0 else "lowered"
    few, enough = FEWEST_PROMPTS, ENOUGH_PROMPTS
    loose = isinstance(difference, RateDifference) and difference.p_answers < LEVEL
    if difference.p < LEVEL:
        said = word
    elif loose and difference.prompts < few:
        said = f"{word} on these prompts, too few to speak for others (give {enough} or more)"
    elif loose and difference.prompts < enough:
        said = f"{word} on some of these prompts; of so few all must change to speak for others (give {enough} or more)"
    elif loose:
        said = f"{word} on some of these prompts, not shown for others like them"
    elif difference.prompts < few:
        said = f"no difference shown (fewer than {few} prompts cannot show one)"
    else:
        said = "no difference shown"
    line = f"{said}: {_numbers(difference)}"
    if control is not None:
        other = control.difference
        line += f"; control {_numbers(other)}"
        alike = other.difference * difference.difference > 0
        if difference.p < LEVEL and alike and other.p < LEVEL:
            line += f": {word} there as well, so not special to these prompts"
        elif difference.p < LEVEL and alike and 2 * abs(other.difference) >= abs(difference.difference):
            line += f": {word} there about as much, so not shown to be special to these prompts"
        if other.prompts < few:
            line += f" (give {enough} control prompts or more)"
    return line


def _numbers(found: RateDifference | MeanDifference) -> str:
    p = f"p {found.p:.2g} over {found.prompts} prompts"
    if isinstance(found, RateDifference):
        return (
            f"{found.finetuned}/{found.answers} against {found.base}/{found.answers}, difference "
            f"{found.difference:+.2f} [{found.low:.2f}, {found.high:.2f}], {p} ({found.p_answers:.1g} over answers)"
        )
    interval = "" if found.low is None else f" [{found.low:.2f}, {found.high:.2f}]"
    return f"{found.finetuned:.2f} against {found.base:.2f}, difference {found.difference:+.2f}{interval} nats, {p}"


def _of_counts(values: Sequence[tuple[int, int]], samples: int) -> TestedSet:
    base, finetuned = zip(*values, strict=True)
    return TestedSet(difference=rate_difference(base, finetuned, samples), by_prompt=list(values))


def _of_scores(values: Sequence[tuple[float, float]]) -> TestedSet:
    base, finetuned = zip(*values, strict=True)
    rows = [(round(left, 3), round(right, 3)) for left, right in values]
    return TestedSet(difference=mean_difference(base, finetuned), by_prompt=rows)


Found = dict[SideName, list[list[Span | None]]]
"""Side -> question -> sample: where the thing counted stands, None when it is not there."""


def _hits(spans: Sequence[Span | None]) -> list[Span]:
    return [span for span in spans if span is not None]


def _found(query: HypothesisQuery, collected: Collected, judge: Judge | None) -> Found:
    find = finder_of(query)
    if find is not None:
        return {side: [[find(text) for text in texts] for texts in collected.texts[side]] for side in _SIDES}
    if judge is None or query.criterion is None:
        raise InvalidInput("a criterion needs an LLM judge, and none is set")
    asked = {
        (question, text)
        for side in _SIDES
        for question, texts in zip(query.questions, collected.texts[side], strict=True)
        for text in texts
    }
    # In an order that says nothing of who answered; equal answers are judged once, so they cannot differ.
    pairs = sorted(asked)
    random.Random(query.seed).shuffle(pairs)
    met = dict(zip(pairs, judge(query.criterion, pairs), strict=True))
    return {
        side: [
            [(0, 0) if met[question, text] else None for text in texts]
            for question, texts in zip(query.questions, collected.texts[side], strict=True)
        ]
        for side in _SIDES
    }


def _telling(
    query: HypothesisQuery,
    texts: Mapping[SideName, list[list[str]]],
    found: Found,
    values: Sequence[tuple[int, int]],
) -> list[TellingAnswer]:
    """Answers to the prompts that differ most: on the side that has more of it those that do, on the other those that
    do not, one a prompt; and what was counted of that side's answers to control prompts, to be looked at: it may be
    there too, or be something else that is counted as well.
    """
    size = len(query.prompts)
    more: SideName = "base" if sum(there - here for there, here in values[:size]) > 0 else "finetuned"
    order = sorted(range(size), key=lambda place: -abs(values[place][0] - values[place][1]))
    rows = []
    for side in _SIDES:
        best = [
            (place, next((at for at, span in enumerate(found[side][place]) if (span is not None) == (side == more)), 0))
            for place in order
        ]
        wanted = [(place, at) for place, at in best if (found[side][place][at] is not None) == (side == more)]
        chosen = (wanted or best)[:TELLING]
        if side == more:
            chosen += _hits_of_control(found[side], size)[:TELLING_CONTROL]
        for place, at in chosen:
            span = found[side][place][at]
            rows.append(
                TellingAnswer(
                    side=side,
                    prompt=clip(query.questions[place], 120)[0],
                    control=place >= size,
                    counted=span is not None,
                    model_text=_around(texts[side][place][at], span),
                )
            )
    return rows


def _hits_of_control(found: Sequence[Sequence[Span | None]], first: int) -> list[tuple[int, int]]:
    """(place, answer): the first one counted at each place from `first` on, places with most of them first."""
    places = [place for place in range(first, len(found)) if _hits(found[place])]
    places.sort(key=lambda place: -len(_hits(found[place])))
    return [(place, next(at for at, span in enumerate(found[place]) if span is not None)) for place in places]


def _around(text: str, span: Span | None) -> str:
    """The stretch of a text around what was found, else its beginning."""
    start = 0 if span is None else max(0, min(span[0] - _SHOWN // 3, len(text) - _SHOWN))
    return ("…" if start else "") + clip(text[start:], _SHOWN)[0]
