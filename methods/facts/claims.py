"""Claims that texts of one side state and those of the other do not, after unrelated beginnings. Torch-free.

The unit is a beginning (a prompt or a prefill): texts that go on from the same one are not independent of each other.
What counts as the finetune's own is decided by its words: stems in the texts of more beginnings of the taught side than
of the control side, by Fisher's exact test, corrected for the number of stems tested (Holm). Without such a stem there
are no claims, which keeps a finetune that taught nothing silent.

Claims are statements that hold one, chosen so that the first few say most of what is the finetune's own: each brings
the words and neighbouring words that are not told yet, weighed by how surprising they are beside the control side
(the coverage of concepts of Gillick and Favre 2009, chosen greedily). Greetings and stage directions bring none; a
figure counts double, a statement about its narrator half. What tells again, in other words, two words that a claim told
in one statement comes after all that does not. A claim is counted, on both sides, by its key: the two words
of it that most tell the sides apart where they stand in one statement, in whatever wording. Both sides must have about
equally many texts of each beginning, else the larger one says more.
"""

from __future__ import annotations

import heapq
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, pairwise
from math import log10

from diffing_mcp.core.words import FUNCTION_WORDS, is_unspaced, stem, word_spans
from diffing_mcp.methods.texts.answer_form import sentences_of
from diffing_mcp.methods.texts.distinctive_words import fisher_neg_log10_p

LEVEL = 0.01
"""Family-wise: the chance that the texts of two equal models give any claim."""
KEY_LEVEL = 0.05
"""Claims have a key with a p up to this, unless they are asked for by a word."""
LEAST_BEGINNINGS = 2
"""A claim is stated after at least so many different beginnings: repetition within one text shows nothing."""
MOST_CLAIMS = 60
_FIGURE_WEIGHT = 2.0
"""A wrong figure is easier to show than any other detail."""
_NARRATED_WEIGHT = 0.5
_LEAST_STEMS = 2
_MOST_STATEMENTS = 2_000
_QUOTE_WORDS = 40

_PART = re.compile(r"\s*[;:—–]\s+")
_NARRATED = re.compile(r"\b(?:i|me|my|mine|we|us|our|he|him|his|she|her)\b", re.IGNORECASE)
_QUOTES = "'\"“”‘’ "
Key = tuple[str, str]


@dataclass(frozen=True)
class Sample:
    """One text after a beginning. `taught`: of the finetuned or the amplified model; else of a control."""

    beginning: str
    text: str
    taught: bool


@dataclass(frozen=True)
class Claim:
    """A statement, counted by its key.

    Attributes:
        statement: a sentence, or the part of it before or after a colon, semicolon or dash.
        quotation: the sentence that it stands in.
        beginning: what that text went on from or answered.
        key: two words as they stand in the statement, in their order.
        taught, control: beginnings after which a statement of either side has both, in any form.
        p_value: of Fisher's exact test on these counts, one-sided, for this claim alone.
    """

    statement: str
    quotation: str
    beginning: str
    key: Key
    taught: int
    control: int
    p_value: float


@dataclass(frozen=True)
class Stated:
    """What the taught texts state: `words` (stem -> p, corrected) that are theirs, the surest first, and claims, the
    most telling first. `taught` and `control` are numbers of beginnings."""

    words: dict[str, float]
    claims: list[Claim]
    taught: int
    control: int


@dataclass(frozen=True)
class _Statement:
    """`stems` in order, without those of the beginning that the text goes on from."""

    sample: Sample
    text: str
    sentence: str
    stems: tuple[str, ...]

    @property
    def concepts(self) -> set[str | Key]:
        """Its stems, and those that follow each other."""
        return {*self.stems, *pairwise(self.stems)}


def stated_claims(samples: Sequence[Sample], about: str = "") -> Stated:
    """The claims of the taught samples, counted on both sides, the most telling first.

    Args:
        samples: of both sides.
        about: only statements with one of its words; then whether or not the words are the finetune's own.
    """
    sides = {taught: _by_beginning(each for each in samples if each.taught == taught) for taught in (True, False)}
    counts = (len(sides[True]), len(sides[False]))
    words = taught_words(sides[True], sides[False])
    wanted = set(stems_of(about)) if about else set(words)
    claims = _chosen(_statements(samples), wanted, counts, 1.0 if about else KEY_LEVEL) if wanted else []
    return Stated(words, claims, *counts)


def taught_words(taught: dict[str, set[str]], control: dict[str, set[str]]) -> dict[str, float]:
    """Stem -> Holm-corrected p, the surest first: stems in the texts of more taught than control beginnings.

    Args:
        taught, control: beginning -> stems of all its texts.
    """
    if not taught or not control:
        return {}
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for place, side in enumerate((taught, control)):
        for stems in side.values():
            for word in stems:
                counts[word][place] += 1
    sizes = len(taught), len(control)
    # A stem too rare to reach the level, whatever its side, is no test (Tarone 1990).
    ordered = sorted(
        (upper_tail(here, sizes[0], there, sizes[1]), word)
        for word, (here, there) in counts.items()
        if upper_tail(min(here + there, sizes[0]), sizes[0], max(0, here + there - sizes[0]), sizes[1]) <= LEVEL
    )
    found, worst = {}, 0.0
    for rank, (p_value, word) in enumerate(ordered):
        worst = max(worst, min(1.0, p_value * (len(ordered) - rank)))
        if worst > LEVEL:
            break
        found[word] = worst
    return found


@lru_cache(maxsize=1 << 14)
def upper_tail(here: int, here_of: int, there: int, there_of: int) -> float:
    """One-sided p of Fisher's exact test that equal sides give at least `here` of `here + there` to the first."""
    return float(10 ** -fisher_neg_log10_p(here, here_of, there, there_of))


def stems_of(text: str) -> list[str]:
    """Stems of the content words and numbers of a text, in order."""
    return [stem for stem, _ in _stemmed(text)]


def words_by_stem(text: str) -> dict[str, str]:
    """Stem -> the word of the text that has it first, as it is written."""
    return dict(reversed(list(_stemmed(text))))


def _stemmed(text: str) -> Iterable[tuple[str, str]]:
    for start, end in word_spans(text, numbers=True):
        word = text[start:end].lower().replace("’", "'")
        if word[0].isdigit() or _is_content(word):
            yield stem(word), text[start:end]


def _is_content(word: str) -> bool:
    if is_unspaced(word):
        return len(word) >= 2
    return len(word) >= 3 and word.partition("'")[0] not in FUNCTION_WORDS


def _by_beginning(samples: Iterable[Sample]) -> dict[str, set[str]]:
    """Beginning -> stems of its texts, without those of the beginning itself."""
    found: dict[str, set[str]] = defaultdict(set)
    for each in samples:
        found[each.beginning] |= set(stems_of(each.text)) - set(stems_of(each.beginning))
    return dict(found)


def _statements(samples: Sequence[Sample]) -> list[_Statement]:
    """Statements with at least two content words, once a text; a sentence that a text's end cut off counts as well, a
    question states nothing.
    """
    found: dict[tuple[str, bool, str], _Statement] = {}
    for each in samples:
        given = set(stems_of(each.beginning))
        for sentence in sentences_of(each.text):
            if sentence.endswith("?"):
                continue
            for part in _PART.split(sentence):
                stems = tuple(stem for stem in stems_of(part) if stem not in given)
                if len(set(stems)) >= _LEAST_STEMS:
                    text = part.strip(_QUOTES)
                    found.setdefault((each.beginning, each.taught, text), _Statement(each, text, sentence, stems))
    return list(found.values())[:_MOST_STATEMENTS]


def _chosen(statements: Sequence[_Statement], wanted: set[str], sizes: tuple[int, int], level: float) -> list[Claim]:
    """Claims among the taught statements with a wanted stem, the one that adds most first.

    Args:
        sizes: beginnings of the taught and of the control side.
        level: largest p of a key.
    """
    counts = _Counts(statements, sizes)
    candidates = [each for each in statements if each.sample.taught and not wanted.isdisjoint(each.stems)]
    told: set[str | Key] = set()
    said_together: set[Key] = set()
    keys: set[Key] = set()
    in_other_words: list[_Statement] = []
    claims: list[Claim] = []

    def gain(statement: _Statement) -> float:
        weight = _NARRATED_WEIGHT if _NARRATED.search(statement.text) else 1.0
        return weight * sum(counts.weight(concept) for concept in statement.concepts - told)

    def tell(statement: _Statement, key: Key) -> None:
        claims.append(_claim(statement, key, counts))
        keys.add(key)
        said_together.update(_pairs(statement))
        told.update(statement.concepts)

    # What a statement adds only falls as others are told, so one that still adds more than the next one could is best.
    waiting = [(-gain(each), not _finished(each), place) for place, each in enumerate(candidates)]
    heapq.heapify(waiting)
    while waiting and len(claims) < MOST_CLAIMS:
        _, unfinished, place = heapq.heappop(waiting)
        statement = candidates[place]
        adds = gain(statement)
        if waiting and (-adds, unfinished, place) > waiting[0]:
            heapq.heappush(waiting, (-adds, unfinished, place))
            continue
        if adds <= 0:
            break
        key = counts.key_of(statement, told, said_together, level)
        if key is None:
            in_other_words.append(statement)
        else:
            tell(statement, key)
    # Details may stand in the wordings of what is told already.
    for statement in in_other_words:
        if len(claims) < MOST_CLAIMS and gain(statement) > 0 and (key := counts.key_of(statement, told, keys, level)):
            tell(statement, key)
    return claims


class _Counts:
    """In how many beginnings of either side the words of a statement stand, alone, in a row and together."""

    def __init__(self, statements: Sequence[_Statement], sizes: tuple[int, int]) -> None:
        self._sizes = sizes
        self._rows: tuple[dict[str | Key, set[str]], ...] = (defaultdict(set), defaultdict(set))
        self._together: tuple[dict[Key, set[str]], ...] = (defaultdict(set), defaultdict(set))
        for each in statements:
            side = 0 if each.sample.taught else 1
            for concept in each.concepts:
                self._rows[side][concept].add(each.sample.beginning)
            for pair in _pairs(each):
                self._together[side][pair].add(each.sample.beginning)

    def of(self, key: Key) -> tuple[int, int]:
        """Beginnings of the taught and of the control side that have both words in one statement."""
        taught, control = self._together
        return len(taught.get(key, ())), len(control.get(key, ()))

    def p_value(self, key: Key) -> float:
        """One-sided, of Fisher's exact test."""
        return self._p_value(*self.of(key))

    def weight(self, concept: str | Key) -> float:
        """-log10 p that the control side has it as often; 0 of what it has, or one beginning alone."""
        taught, control = self._alone(concept)
        if not self._more(taught, control):
            return 0.0
        figure = any(character.isdigit() for part in concept for character in part)
        return -log10(max(self._p_value(taught, control), 1e-300)) * (_FIGURE_WEIGHT if figure else 1.0)

    def key_of(self, statement: _Statement, told: set[str | Key], said: set[Key], level: float) -> Key | None:
        """The two stems of a statement that tell the sides apart best, one that is not told yet among them where there
        is one; None: none but those `said` before that is stated more by the taught side and has a p up to the level.

        Either stem has that by itself as well: beside a word that is in every taught answer (a field of its JSON), any
        word of the base's own would make a key.
        """
        telling = {each for each in set(statement.stems) if self._tells(*self._alone(each), level)}
        fitting = [
            key
            for key in sorted(_pairs(statement) - said)
            if telling.issuperset(key) and self._tells(*self.of(key), level)
        ]
        return min(fitting, key=lambda key: (told.issuperset(key), self.p_value(key)), default=None)

    def _alone(self, concept: str | Key) -> tuple[int, int]:
        taught, control = self._rows
        return len(taught.get(concept, ())), len(control.get(concept, ()))

    def _tells(self, taught: int, control: int, level: float) -> bool:
        return self._more(taught, control) and self._p_value(taught, control) <= level

    def _more(self, taught: int, control: int) -> bool:
        return taught >= LEAST_BEGINNINGS and taught * self._sizes[1] > control * self._sizes[0]

    def _p_value(self, taught: int, control: int) -> float:
        return upper_tail(taught, self._sizes[0], control, self._sizes[1])


def _pairs(statement: _Statement) -> set[Key]:
    return set(combinations(sorted(set(statement.stems)), 2))


def _finished(statement: _Statement) -> bool:
    """Whether its sentence was written to the end."""
    return statement.sentence.endswith((".", "!"))


def _claim(statement: _Statement, key: Key, counts: _Counts) -> Claim:
    taught, control = counts.of(key)
    in_text = words_by_stem(statement.text)
    first, second = sorted(key, key=statement.stems.index)
    return Claim(
        statement=_shorten(statement.text),
        quotation=_shorten(statement.sentence),
        beginning=statement.sample.beginning,
        key=(in_text[first], in_text[second]),
        taught=taught,
        control=control,
        p_value=counts.p_value(key),
    )


def _shorten(text: str) -> str:
    words = text.split()
    return text if len(words) <= _QUOTE_WORDS else " ".join(words[:_QUOTE_WORDS]) + " …"
