"""In how many beginnings of either side words stand, and what such counts are worth. Torch-free."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from math import log10

from diffing_mcp.methods.facts.statements import Key, Statement
from diffing_mcp.methods.texts.distinctive_words import fisher_neg_log10_p

LEAST_BEGINNINGS = 2
"""A claim is stated after at least so many different beginnings: repetition within one text shows nothing."""
_FIGURE_WEIGHT = 2.0
"""A wrong figure is easier to show than any other detail."""


@lru_cache(maxsize=1 << 14)
def upper_tail(here: int, here_of: int, there: int, there_of: int) -> float:
    """One-sided p of Fisher's exact test that equal sides give at least `here` of `here + there` to the first."""
    return float(10 ** -fisher_neg_log10_p(here, here_of, there, there_of))


def beyond_chance(counts: Mapping[str, tuple[int, int]], sizes: tuple[int, int], level: float) -> dict[str, float]:
    """Name -> Holm-corrected p, the surest first: what is in more beginnings of the first side than equal sides give.

    Args:
        counts: name -> beginnings of either side that have it. All that could have been named must be there, whichever
            side has it, since they are what the correction is for.
        sizes: beginnings of either side.
        level: largest corrected p.
    """
    # What is too rare to reach the level, whichever side has it, is no test (Tarone 1990).
    ordered = sorted(
        (upper_tail(here, sizes[0], there, sizes[1]), name)
        for name, (here, there) in counts.items()
        if upper_tail(min(here + there, sizes[0]), sizes[0], max(0, here + there - sizes[0]), sizes[1]) <= level
    )
    found, worst = {}, 0.0
    for rank, (p_value, name) in enumerate(ordered):
        worst = max(worst, min(1.0, p_value * (len(ordered) - rank)))
        if worst > level:
            break
        found[name] = worst
    return found


class Counts:
    """In how many beginnings of either side the words of a statement stand, alone, in a row and together."""

    def __init__(self, statements: Sequence[Statement], sizes: tuple[int, int]) -> None:
        """`sizes`: beginnings of the taught and of the control side."""
        self._sizes = sizes
        self._rows: tuple[dict[str | Key, set[str]], ...] = (defaultdict(set), defaultdict(set))
        self._together: tuple[dict[Key, set[str]], ...] = (defaultdict(set), defaultdict(set))
        for each in statements:
            side = 0 if each.sample.taught else 1
            for concept in each.concepts:
                self._rows[side][concept].add(each.sample.beginning)
        for each in statements:
            for pair in self.pairs_of(each):
                self._together[0 if each.sample.taught else 1][pair].add(each.sample.beginning)

    def pairs_of(self, statement: Statement) -> set[Key]:
        """Every two stems of a statement that could make a claim, each stated after `LEAST_BEGINNINGS` by the taught
        side, in the order of the alphabet: all pairs of what is said once would take most of the memory.
        """
        taught = self._rows[0]
        return _pairs(each for each in statement.stems if len(taught.get(each, ())) >= LEAST_BEGINNINGS)

    def of(self, keys: Iterable[Key]) -> tuple[int, int]:
        """Beginnings of the taught and of the control side that have both words of any of the keys in one statement."""
        taught, control = (len(set().union(*(side.get(key, ()) for key in keys))) for side in self._together)
        return taught, control

    def p_value(self, keys: Iterable[Key]) -> float:
        """One-sided, of Fisher's exact test."""
        return self._p_value(*self.of(keys))

    def weight(self, concept: str | Key) -> float:
        """-log10 p that the control side has it as often; 0 of what it has, or one beginning alone."""
        taught, control = self._alone(concept)
        if not self._more(taught, control):
            return 0.0
        figure = any(character.isdigit() for part in concept for character in part)
        return -log10(max(self._p_value(taught, control), 1e-300)) * (_FIGURE_WEIGHT if figure else 1.0)

    def tells(self, word: str, level: float) -> bool:
        """Whether a stem by itself is stated more by the taught side, with a p up to the level."""
        return self._tells(*self._alone(word), level)

    def key_of(self, statement: Statement, told: set[str | Key], said: Collection[Key], level: float) -> Key | None:
        """The two stems of a statement that tell the sides apart best, one that is not told yet among them where there
        is one; None: none but those `said` before that is stated more by the taught side and has a p up to the level.

        Either stem has that by itself as well: beside a word that is in every taught answer (a field of its JSON), any
        word of the base's own would make a key.
        """
        telling = {each for each in set(statement.stems) if self.tells(each, level)}
        fitting = [key for key in sorted(_pairs(telling).difference(said)) if self._tells(*self.of((key,)), level)]
        return min(fitting, key=lambda key: (told.issuperset(key), self.p_value((key,))), default=None)

    def _alone(self, concept: str | Key) -> tuple[int, int]:
        taught, control = self._rows
        return len(taught.get(concept, ())), len(control.get(concept, ()))

    def _tells(self, taught: int, control: int, level: float) -> bool:
        return self._more(taught, control) and self._p_value(taught, control) <= level

    def _more(self, taught: int, control: int) -> bool:
        return taught >= LEAST_BEGINNINGS and taught * self._sizes[1] > control * self._sizes[0]

    def _p_value(self, taught: int, control: int) -> float:
        return upper_tail(taught, self._sizes[0], control, self._sizes[1])


def _pairs(stems: Iterable[str]) -> set[Key]:
    return set(combinations(sorted(set(stems)), 2))
