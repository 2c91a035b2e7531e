"""A claim in all its wordings: which statements are its own, which one stands for them, and what varies. Torch-free."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from statistics import median_low
from typing import Self

from diffing_mcp.methods.facts.counts import LEAST_BEGINNINGS
from diffing_mcp.methods.facts.statements import FIGURE, Key, Statement, is_figure, masked, words_by_stem

NARRATED_WEIGHT = 0.5
"""A statement about its narrator tells half as much as another one."""
_MOST_NUMBERS = 5


@dataclass(frozen=True)
class Wordings:
    """Taught statements that hold one of the keys, which are one claim. `first` is the one that added most to what was
    told when the claim was found.
    """

    keys: tuple[Key, ...]
    statements: tuple[Statement, ...]
    first: Statement

    @cached_property
    def shared(self) -> frozenset[str]:
        """Stems that most of the statements have, with one sign for all numbers."""
        found = Counter(each for statement in self.statements for each in masked(statement.stems))
        return frozenset(each for each, count in found.items() if 2 * count > len(self.statements))

    def same_claim(self, other: Wordings) -> bool:
        """Whether the other one states the same: most statements of either have the keys of the other, any number
        standing for any other, and most of what they share.
        """
        return (
            all(masked(key) <= other.shared for key in self.keys[:1])
            and all(masked(key) <= self.shared for key in other.keys[:1])
            and 2 * len(self.shared & other.shared) > len(self.shared | other.shared)
        )

    def joined(self, other: Wordings) -> Self:
        """Both as one."""
        keys = dict.fromkeys((*self.keys, *other.keys))
        return type(self)(tuple(keys), tuple(dict.fromkeys((*self.statements, *other.statements))), self.first)

    def counted_by(self, p_value: Callable[[Iterable[Key]], float]) -> list[Key]:
        """The key that tells most, and those that have another one of `numbers` in place of its number."""
        alike = [[key, *self._with_other_numbers(key)] for key in self.keys]
        return min(alike, key=p_value)

    def _with_other_numbers(self, key: Key) -> Iterator[Key]:
        for place, word in enumerate(key):
            if is_figure(word):
                swapped = (tuple(sorted((number, key[1 - place]))) for number, _ in self.numbers if number != word)
                yield from ((first, second) for first, second in swapped)

    def typical(self, keys: Sequence[Key], quoted: Collection[str] = ()) -> Statement | None:
        """The statement with one of the keys that stands for all, None where all of them are `quoted`: it denies or
        affirms as most of them do and is no fragment where most are none. Of such ones it is the `first`, which brings
        details that nothing else tells; else the one that has most of its words in common with the others (the nearest
        to their centroid by cosine), of equal ones the shortest.
        """
        weights = Counter(stem for statement in self.statements for stem in set(statement.stems))
        denies = _most(statement.negated for statement in self.statements)
        finishes = _most(statement.finished for statement in self.statements)
        length = median_low(len(set(statement.stems)) for statement in self.statements)

        def order(statement: Statement) -> tuple[bool, bool, bool, float, bool, int]:
            times = Counter(statement.stems)
            central = sum(weights[stem] for stem in statement.stems) / sqrt(sum(count**2 for count in times.values()))
            return (
                denies is not None and statement.negated != denies,
                len(times) < length or (finishes is True and not statement.finished),
                statement != self.first,
                -central * (NARRATED_WEIGHT if statement.narrated else 1.0),
                not statement.finished,
                len(statement.text),
            )

        fitting = (each for each in self.statements if has_any(each, keys) and each.text not in quoted)
        return min(fitting, key=order, default=None)

    def further(self, tells: Callable[[str], bool]) -> list[str]:
        """Stems that most of the statements have besides their keys and tell the sides apart, the most frequent first.

        Args:
            tells: whether a stem does.
        """
        found = Counter(stem for statement in self.statements for stem in dict.fromkeys(statement.stems))
        own = [stem for stem, count in found.most_common() if 2 * count > len(self.statements)]
        return [stem for stem in own if not is_figure(stem) and tells(stem)]

    def written(self, stem: str) -> str:
        """A stem as the first statement that has it writes it."""
        return next(words[stem] for each in self.statements if stem in (words := words_by_stem(each.text)))

    @cached_property
    def numbers(self) -> list[tuple[str, int]]:
        """The numbers in the statements, with after how many beginnings, the most frequent first; none where most
        statements have no number, or all that repeat it the same one.
        """
        if FIGURE not in self.shared:
            return []
        after: dict[str, set[str]] = defaultdict(set)
        for statement in self.statements:
            for stem in filter(is_figure, statement.stems):
                after[stem].add(statement.sample.beginning)
        seen = sorted(((number, len(found)) for number, found in after.items()), key=lambda each: (-each[1], each[0]))
        repeated = [(number, count) for number, count in seen if count >= LEAST_BEGINNINGS]
        return repeated[:_MOST_NUMBERS] if len(repeated) > 1 else []


def has_any(statement: Statement, keys: Iterable[Key]) -> bool:
    """Whether a statement has both stems of one of the keys."""
    return any(set(key) <= set(statement.stems) for key in keys)


def _most(answers: Iterable[bool]) -> bool | None:
    """What most answers are; None of a tie."""
    counts = Counter(answers)
    return None if counts[True] == counts[False] else counts[True] > counts[False]
