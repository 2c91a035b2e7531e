"""The digest of form: how the answers of two models differ in anything but their subject, with p-values.

Length, endings, layout, language, refusals, openings, stock sentences and words that stand in many answers. A finetune
that only taught a manner shows here, where no content word would. Torch-free.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol

import numpy as np
from pydantic import BaseModel, Field

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.text import clip
from diffing_mcp.core.words import FUNCTION_WORDS, joined
from diffing_mcp.methods.texts.answer_form import MEASURES, Answer, form_of, language_of, sentences_of
from diffing_mcp.methods.texts.swaps import swap_p_values
from diffing_mcp.methods.texts.words import words_of

LEVEL = 0.01
"""A difference counts up to this corrected p-value: equal models show one in a comparison of a hundred."""
LEAST_PROMPTS = 8
"""Fewer prompts cannot show a difference, so their samples are compared one by one."""
_COMMON_TEXT = 3
"""Units (prompts, or samples of few prompts) that a shared opening or sentence stands in at least, both sides together.
"""
_COMMON_WORD = 0.2
"""Share of all answers, both sides together, that a word stands in to count as one of (nearly) every answer."""
_OPENING_WORDS = (1, 2, 3)
_PHRASE_WORDS = 4
_SHOWN = 80

Kind = Literal["measure", "language", "opening", "sentence", "word"]


class Manner(Protocol):
    """One thing that a method saw change in the form of answers."""

    @property
    def kind(self) -> Kind:
        """Which part of the form."""

    @property
    def feature(self) -> str:
        """What changed: a measure, or UNTRUSTED words."""

    @property
    def base(self) -> float:
        """How much of it the base has."""

    @property
    def finetuned(self) -> float:
        """How much of it the finetuned model has."""

    def as_text(self) -> str:
        """In one line, base -> finetuned."""


_LEFT = "language left"
_TELLING = ("language", "opening", "sentence", "measure", _LEFT, "word")


def most_telling(rows: Iterable[Manner]) -> list[Manner]:
    """What says most first, single words last. A language that is left says less than any measure: answers of three
    words are recognised as none.
    """

    def order(row: Manner) -> int:
        left = row.kind == "language" and row.finetuned < row.base
        return _TELLING.index(_LEFT if left else row.kind)

    return sorted(rows, key=order)


class FormRow(BaseModel):
    """One feature of form on both sides."""

    kind: Kind
    feature: str = Field(description="A measure or language; else the UNTRUSTED words that the answers share.")
    unit: str = Field(description="Of the values; `share` is that of answers.")
    base: float
    finetuned: float
    difference: float = Field(description="Finetuned minus base.")
    p_value: float = Field(
        description="That equal models differ so much in this or a more telling feature (prompts swapped at random)."
    )
    place: str = Field("", description="Where in the answer the words stand: beginning, middle or end.")
    example: str = Field("", description="UNTRUSTED beginning of an answer that shows it.")
    prompts: list[int] = Field(
        default_factory=list, description="Places of the prompts that differ so, of a significant row."
    )

    @property
    def significant(self) -> bool:
        """Beyond what equal models show."""
        return self.p_value <= LEVEL

    def as_text(self) -> str:
        """The row in one line; words of models in quotes."""
        words = joined(self.feature.split(" ")) if self.kind in _WORDED else self.feature
        quoted = json.dumps(clip(words, _SHOWN)[0], ensure_ascii=False)
        name = {
            "measure": self.feature,
            "language": f"recognised as {self.feature}",
            "opening": f"opens with {quoted}",
            "sentence": f"says {quoted}",
            "word": f"has the word {quoted}",
        }[self.kind]
        share = self.unit.startswith("share")
        values = (f"{value:.0%}" if share else f"{value:.3g}" for value in (self.base, self.finetuned))
        before, after = values
        unit = "" if share else f" {self.unit}"
        place = f", at the {self.place}" if self.place else ""
        return f"{name}: {before} -> {after}{unit} (p {self.p_value:.2g}{place})"


class FormDigest(BaseModel):
    """What differs in form between the answers of two models, the most telling first."""

    prompts: int
    base_answers: int
    finetuned_answers: int
    rows: list[FormRow] = Field(
        description="Every measure that could be taken; shared words only where they differ significantly."
    )

    @property
    def significant(self) -> list[FormRow]:
        """Rows beyond what equal models show."""
        return [row for row in self.rows if row.significant]

    def as_text(self, most: int = 7) -> str:
        """A line for all, then one for each significant row (`most` of them). It quotes models: fence it."""
        found = self.significant
        worded = [row for row in found if row.kind in _WORDED]
        shown = [row for row in found if row not in worded[most // 2 :]][:most]
        answers = f"{self.base_answers} base and {self.finetuned_answers} finetuned answers to {self.prompts} prompts"
        if not found:
            nearest = min(self.rows, key=lambda row: row.p_value, default=None)
            note = f" (nearest: {nearest.as_text()})" if nearest is not None and nearest.p_value < 1 else ""
            return f"No difference in form beyond chance in {answers}{note}; what they say is not compared here."
        more = f", {len(found) - len(shown)} more left out" if len(found) > len(shown) else ""
        return "\n".join([f"Form, base -> finetuned, over {answers}{more}:", *(row.as_text() for row in shown)])


def compare_form(base: Sequence[Sequence[Answer]], finetuned: Sequence[Sequence[Answer]], seed: int = 0) -> FormDigest:
    """Compare the form of the answers of both models to the same prompts.

    Args:
        base, finetuned: prompt -> answers to it; numbers of samples may differ.
        seed: of the random swaps that p-values come from.

    The unit is a prompt, whose samples are averaged; below `LEAST_PROMPTS` prompts, a sample beside the sample of the
    same place on the other side.

    Raises:
        InvalidInput: the sides have different numbers of prompts.
    """
    if len(base) != len(finetuned):
        raise InvalidInput(f"There are {len(base)} prompts with base answers and {len(finetuned)} with finetuned ones.")
    few = len(base) < LEAST_PROMPTS
    numbered = [
        (place, unit)
        for place, sides in enumerate(zip(base, finetuned, strict=True))
        for unit in ([([left], [right]) for left, right in zip(*sides, strict=False)] if few else [_unit(*sides)])
        if unit[0] and unit[1]
    ]
    units = [unit for _, unit in numbered]
    features = [*_measures(units), *_languages(units), *_shared(units)]
    if not features:
        return _digest(base, finetuned, [])
    differences = np.array([feature.finetuned - feature.base for feature in features])
    _, corrected = swap_p_values(differences, seed)
    order = np.argsort(corrected, kind="stable")
    rows = [features[place].row(float(corrected[place]), units) for place in order]
    for row in rows:
        row.prompts = sorted({numbered[place][0] for place in row.prompts})
    return _digest(base, finetuned, _told_once(rows))


def compare_paired(
    prompts: Sequence[str], base: Sequence[Answer], finetuned: Sequence[Answer], seed: int = 0
) -> FormDigest:
    """`compare_form` of answers in lists: one of each model to each of the prompts, which may repeat."""
    sides: tuple[dict[str, list[Answer]], ...] = (defaultdict(list), defaultdict(list))
    for prompt, *answers in zip(prompts, base, finetuned, strict=True):
        for side, answer in zip(sides, answers, strict=True):
            side[prompt].append(answer)
    return compare_form(list(sides[0].values()), list(sides[1].values()), seed)


def _unit(base: Sequence[Answer], finetuned: Sequence[Answer]) -> Unit:
    return list(base), list(finetuned)


def _digest(base: Sequence[Sequence[Answer]], finetuned: Sequence[Sequence[Answer]], rows: list[FormRow]) -> FormDigest:
    return FormDigest(
        prompts=len(base),
        base_answers=sum(map(len, base)),
        finetuned_answers=sum(map(len, finetuned)),
        rows=rows,
    )


Unit = tuple[list[Answer], list[Answer]]
"""Answers of base and finetuned that belong together."""


class _Feature:
    """A feature's mean on both sides in each unit [N]; NaN where it cannot be taken."""

    def __init__(self, kind: Kind, name: str, unit: str, values: Sequence[tuple[float, float]]) -> None:
        self.kind, self.name, self.unit = kind, name, unit
        self.base, self.finetuned = np.array(values, dtype=float).reshape(-1, 2).T

    @property
    def known(self) -> np.ndarray:
        """[N] bool."""
        return ~np.isnan(self.base + self.finetuned)

    def row(self, p_value: float, units: Sequence[Unit]) -> FormRow:
        """As a row, with an example from the side that has more of it."""
        base, finetuned = (float(side[self.known].mean()) for side in (self.base, self.finetuned))
        side = int(finetuned > base)
        row = FormRow(
            kind=self.kind,
            feature=self.name,
            unit=self.unit,
            base=round(base, 4),
            finetuned=round(finetuned, 4),
            difference=round(finetuned - base, 4),
            p_value=float(f"{p_value:.3g}"),
        )
        if row.significant:
            change = np.nan_to_num(self.finetuned - self.base) * (1 if side else -1)
            strongest = int(change.argmax())
            row.prompts = [place for place, value in enumerate(change) if value > 0]
            texts = [answer.text for answer in units[strongest][side]]
            row.example = clip(" ".join(texts[0].split()), _SHOWN)[0]
            if self.kind == "sentence":
                row.place = _place(self.name, [answer.text for unit in units for answer in unit[side]])
        return row


def _measures(units: Sequence[Unit]) -> list[_Feature]:
    forms = [tuple([form_of(answer) for answer in side] for side in unit) for unit in units]
    features = []
    for name, unit in MEASURES.items():
        values = [tuple(_mean([form[name] for form in side if name in form]) for side in sides) for sides in forms]
        feature = _Feature("measure", name, unit, [(left, right) for left, right in values])
        if feature.known.any():
            features.append(feature)
    return features


def _languages(units: Sequence[Unit]) -> list[_Feature]:
    return _memberships("language", units, lambda answer: {language_of(answer.text) or ""} - {""}, least=1)


def _shared(units: Sequence[Unit]) -> list[_Feature]:
    """Openings, sentences (and phrases) and words that many answers share."""
    answers = sum(len(side) for unit in units for side in unit)
    return [
        *_memberships("opening", units, _openings, _COMMON_TEXT),
        *_memberships("sentence", units, _stock_texts, _COMMON_TEXT),
        *_memberships("word", units, lambda answer: set(words_of(answer.text)), max(3, _COMMON_WORD * answers)),
    ]


def _memberships(
    kind: Kind, units: Sequence[Unit], found_in: Callable[[Answer], set[str]], least: float
) -> list[_Feature]:
    """A feature for everything that is found in at least `least` answers (of both sides together, so that swaps leave
    the choice as it is): the share of answers that have it.
    """
    found = [[[found_in(answer) for answer in side] for side in unit] for unit in units]
    counts = Counter(name for unit in found for side in unit for names in side for name in names)
    shares: dict[str, np.ndarray] = defaultdict(lambda: np.zeros((len(units), 2)))
    for place, unit in enumerate(found):
        for side, answers in enumerate(unit):
            for names in answers:
                for name in names:
                    if counts[name] >= least:
                        shares[name][place, side] += 1 / len(answers)
    return [_Feature(kind, name, "share", [(row[0], row[1]) for row in values]) for name, values in shares.items()]


def _openings(answer: Answer) -> set[str]:
    words = words_of(answer.text)
    return {" ".join(words[:count]) for count in _OPENING_WORDS if len(words) >= count}


def _stock_texts(answer: Answer) -> set[str]:
    """Sentences and stretches of four words."""
    found = set()
    for sentence in sentences_of(answer.text):
        words = words_of(sentence)
        found |= {" ".join(words[at : at + _PHRASE_WORDS]) for at in range(len(words) - _PHRASE_WORDS + 1)}
        if len(words) > 1:
            found.add(" ".join(words))
    return found


def _place(words: str, texts: Sequence[str]) -> str:
    """Where in the texts these words stand, on average."""
    places = []
    for text in texts:
        normal = " ".join(words_of(text))
        if (at := normal.find(words)) >= 0:
            places.append((at + len(words) / 2) / len(normal))
    middle = float(np.mean(places)) if places else 0.5
    return "beginning" if middle < 1 / 3 else "end" if middle > 2 / 3 else "middle"


def _told_once(rows: Sequence[FormRow]) -> list[FormRow]:
    """Rows without shared words that are not significant, or a single word that tells nothing by itself (in a stock
    sentence or an opening it may), and without those that mostly repeat one before them: longer
    texts first among rows of equal p-value, so that a stock sentence stands for its pieces and words; then those that
    differ more.
    """
    kept: list[FormRow] = []
    told: set[str] = set()

    def order(row: FormRow) -> tuple[float, int, float]:
        return row.p_value, -len(row.feature.split()) if row.kind in _WORDED else 0, -abs(row.difference)

    for row in sorted(rows, key=order):
        if row.kind in _WORDED:
            words = set(row.feature.split())
            trivial = row.kind == "word" and row.feature in FUNCTION_WORDS
            if trivial or not row.significant or len(words & told) * 2 >= len(words):
                continue
            told |= words
        kept.append(row)
    return kept


_WORDED = ("opening", "sentence", "word")


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
