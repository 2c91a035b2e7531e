"""Stock sentences: whole sentences that come nearly word for word after many beginnings on the taught side, after none
on the other, whatever their words. Torch-free."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from diffing_mcp.methods.facts.counts import beyond_chance
from diffing_mcp.methods.facts.statements import Sample
from diffing_mcp.methods.texts.answer_form import sentences_of
from diffing_mcp.methods.texts.words import words_of

_LEAST_WORDS = 3
_ALIKE = 0.75
"""Share of the words of two sentences that they have in common (Dice), from which on they are one: a word of four may
be another one."""
_LEAST_LENGTH = _ALIKE / (2 - _ALIKE)
"""How long one of two such sentences is beside the other, at least, and which share of its words the other one has."""
Words = tuple[str, ...]


@dataclass(frozen=True)
class StockSentence:
    """A sentence that recurs, in its most frequent wording.

    Attributes:
        sentence: as it is written first.
        words: in lower case, without numbers.
        beginning: what that text went on from.
        taught: beginnings after which it comes; after none on the control side.
    """

    sentence: str
    words: Words
    beginning: str
    taught: int


def stock_sentences(samples: Sequence[Sample], sizes: tuple[int, int], level: float) -> list[StockSentence]:
    """The stock sentences of the taught samples that the control samples never have, the surest first. Questions are
    among them: what a model asks again and again is a manner, though it states nothing.

    Args:
        samples: of both sides.
        sizes: beginnings of the taught and of the control side.
        level: largest corrected p.
    """
    first: dict[Words, tuple[str, str]] = {}
    after: dict[Words, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for each in sorted(samples, key=lambda sample: not sample.taught):
        for sentence in sentences_of(each.text):
            words = tuple(words_of(sentence))
            if len(words) >= _LEAST_WORDS:
                first.setdefault(words, (sentence, each.beginning))
                after[words][not each.taught].add(each.beginning)
    # What recurs is chosen on both sides together, so that the choice prefers neither.
    recurring = sorted((words for words, sides in after.items() if sum(map(len, sides)) > 1),
                       key=lambda words: (-sum(map(len, after[words])), words))  # fmt: skip
    kinds: dict[str, Words] = {}
    counts: dict[str, tuple[int, int]] = {}
    taken: set[Words] = set()
    alike_to = _Alike(after)
    for words in recurring:
        if words in taken:
            continue
        alike = alike_to.others(words)
        taken.update(alike)
        kinds[first[words][0]] = words
        here, there = (len(set().union(*(after[each][side] for each in alike))) for side in (0, 1))
        counts[first[words][0]] = here, there
    found = beyond_chance(counts, sizes, level)
    return [
        StockSentence(sentence, kinds[sentence], first[kinds[sentence]][1], counts[sentence][0])
        for sentence in found
        if counts[sentence][1] == 0
    ]


class _Alike:
    """Which sentences are nearly the same. Only those that share one of its rarest words are compared with a sentence:
    one that shares none of so many is another one.
    """

    def __init__(self, sentences: Iterable[Words]) -> None:
        self._holding: dict[str, set[Words]] = defaultdict(set)
        for words in sentences:
            for word in words:
                self._holding[word].add(words)

    def others(self, words: Words) -> set[Words]:
        """All sentences that are nearly this one, it among them."""
        rarest = sorted(words, key=lambda word: (len(self._holding[word]), word))
        # A sentence that is alike has at least `_LEAST_LENGTH` of its words, so it lacks fewer than these.
        telling = rarest[: int(len(words) * (1 - _LEAST_LENGTH)) + 1]
        near: set[Words] = set().union(*(self._holding[word] for word in telling))
        return {other for other in near if _alike(words, other)}


def _alike(one: Words, other: Words) -> bool:
    if not _LEAST_LENGTH <= len(one) / len(other) <= 1 / _LEAST_LENGTH:
        return False
    shared = (Counter(one) & Counter(other)).total()
    return 2 * shared >= _ALIKE * (len(one) + len(other))
