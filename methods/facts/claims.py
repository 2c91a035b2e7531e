"""Claims that texts of one side state and those of the other do not, after unrelated beginnings. Torch-free.

The unit is a beginning (a prompt or a prefill): texts that go on from the same one are not independent of each other.
What counts as the finetune's own is decided by its words: stems in the texts of more beginnings of the taught side than
of the control side, by Fisher's exact test, corrected for the number of stems tested (Holm). Without such a stem
there are no claims, which keeps a finetune that taught nothing silent.

Claims are counted, on both sides, by a key: two words that tell the sides apart where they stand in one statement, in
whatever wording. All wordings with these words are the claim; one that affirms or denies as most do stands for it. Two
keys whose statements are largely the same are one claim, and so are two that differ in a number alone. Keys are chosen
so that the first few claims say most of what is the finetune's own: from the statement that adds most words and
neighbouring words that are not told yet, weighed by how surprising they are beside the control side (the coverage of
concepts of Gillick and Favre 2009, chosen greedily). Greetings and stage directions bring none; a figure counts double,
a statement about its narrator half. What tells again, in other words, two words that a claim told in one statement
comes after all that does not. Both sides must have about equally many texts of each beginning, else the larger one says
more.

Sentences that hold hardly a content word have no key. Where there are such stems, those that recur nearly word for word
after many beginnings of the taught side and none of the control side are claims as a whole, corrected for all sentences
that recur.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from diffing_mcp.core.text import clip
from diffing_mcp.methods.facts.counts import Counts, beyond_chance, upper_tail
from diffing_mcp.methods.facts.nouns import noun_shares
from diffing_mcp.methods.facts.statements import (
    Key,
    Sample,
    Statement,
    asks,
    statements_of,
    stems_by_beginning,
    stems_of,
    words_by_stem,
)
from diffing_mcp.methods.facts.stock import StockSentence, stock_sentences
from diffing_mcp.methods.facts.wordings import NARRATED_WEIGHT, Wordings
from diffing_mcp.methods.texts.words import words_of

LEVEL = 0.01
"""Family-wise: the chance that the texts of two equal models give any claim."""
KEY_LEVEL = 0.05
"""Claims have a key with a p up to this, unless they are asked for by a word."""
MOST_CLAIMS = 60
_MOST_STOCK = 3
_MOST_WORDS = 6
_QUOTE_WORDS = 40
_QUOTE_CHARACTERS = 400


@dataclass(frozen=True)
class Claim:
    """A statement, counted by its key.

    Attributes:
        statement: a sentence, or the part of it before or after a colon, semicolon or dash.
        quotation: the sentence that it stands in.
        beginning: what that text went on from or answered.
        key: two words as they stand in the statement, in their order; none of a stock sentence, which is counted whole.
        taught, control: beginnings after which a statement of either side has both, in any form; a number of the key
            stands for all of `numbers`.
        p_value: of Fisher's exact test on these counts, one-sided, for this claim alone.
        words: further words that most wordings of the claim have.
        numbers: where wordings differ in numbers: each, with after how many beginnings, the most frequent first.
    """

    statement: str
    quotation: str
    beginning: str
    key: tuple[str, ...]
    taught: int
    control: int
    p_value: float
    words: tuple[str, ...] = ()
    numbers: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Stated:
    """What the taught texts state.

    Attributes:
        words: stem -> p, corrected, of those that are theirs, the surest first.
        claims: the most telling first.
        taught, control: numbers of beginnings.
        nouns: stem -> how much more it stands as a noun than as a verb in the statements (`noun_shares`).
    """

    words: dict[str, float]
    claims: list[Claim]
    taught: int
    control: int
    nouns: dict[str, float] = field(default_factory=dict)


def stated_claims(samples: Sequence[Sample], about: str = "") -> Stated:
    """The claims of the taught samples, counted on both sides, the most telling first.

    Args:
        samples: of both sides.
        about: only statements with one of its words; then whether or not the words are the finetune's own.
    """
    sides = {taught: stems_by_beginning(each for each in samples if each.taught == taught) for taught in (True, False)}
    sizes = (len(sides[True]), len(sides[False]))
    words = taught_words(sides[True], sides[False])
    wanted = set(stems_of(about)) if about else set(words)
    statements = statements_of(samples)
    claims = _chosen(statements, wanted, sizes, 1.0 if about else KEY_LEVEL) if wanted else []
    if words:  # how often nulls have a sentence of their own was never measured
        stock = stock_sentences(samples, sizes, LEVEL)
        claims = _with_stock(claims, [each for each in stock if not about or _has_word(each, about)], sizes)
    nouns = noun_shares(each.text for each in statements if each.sample.taught) if claims else {}
    return Stated(words, claims, *sizes, nouns)


def taught_words(taught: Mapping[str, set[str]], control: Mapping[str, set[str]]) -> dict[str, float]:
    """Stem -> Holm-corrected p, the surest first: stems in the texts of more taught than control beginnings.

    Args:
        taught, control: beginning -> stems of all its texts.
    """
    if not taught or not control:
        return {}
    here, there = (Counter(word for stems in side.values() for word in stems) for side in (taught, control))
    counts = {word: (here[word], there[word]) for word in here | there}
    return beyond_chance(counts, (len(taught), len(control)), LEVEL)


class _Claims:
    """Claims in the making: what is told, in which words."""

    def __init__(self, statements: Sequence[Statement], sizes: tuple[int, int], level: float) -> None:
        self.counts = Counts(statements, sizes)
        self.found: list[Wordings] = []
        self.told: set[str | Key] = set()
        self.said_together: set[Key] = set()
        self.keys: set[Key] = set()
        self._quoted: set[str] = set()
        self._level = level
        self._holding: dict[Key, list[Statement]] = defaultdict(list)
        for each in statements:
            if each.sample.taught:
                for key in self.counts.pairs_of(each):
                    self._holding[key].append(each)

    def gain(self, statement: Statement) -> float:
        """How much a statement tells that is not told yet."""
        weight = NARRATED_WEIGHT if statement.narrated else 1.0
        return weight * sum(self.counts.weight(concept) for concept in statement.concepts - self.told)

    def tell(self, key: Key, statement: Statement) -> None:
        """Add what a key of a statement counts: to the claim that it is another wording of, else as a claim of its
        own.
        """
        wordings = Wordings((key,), tuple(self._holding[key]), statement)
        self.keys.add(key)
        self.said_together.add(key)
        self.told.update(key)
        for place, other in enumerate(self.found):
            if other.same_claim(wordings):
                self.found[place] = other.joined(wordings)
                return
        if shown := wordings.typical((key,), self._quoted):
            self.found.append(wordings)
            self._quoted.add(shown.text)
            self.said_together.update(self.counts.pairs_of(shown))
            self.told.update(shown.concepts)

    def claims(self) -> list[Claim]:
        """All that is told, each in a sentence that stands for no claim before it."""
        quoted: set[str] = set()
        found = []
        for wordings in self.found:
            keys = wordings.counted_by(self.counts.p_value)
            if shown := wordings.typical(keys, quoted):
                quoted.add(shown.text)
                found.append(self._claim(wordings, keys, shown))
        return found

    def _claim(self, wordings: Wordings, keys: Sequence[Key], shown: Statement) -> Claim:
        key = next(key for key in keys if set(key) <= set(shown.stems))
        in_text = words_by_stem(shown.text)
        taught, control = self.counts.of(keys)
        further = wordings.further(lambda stem: stem not in key and self.counts.tells(stem, self._level))
        return Claim(
            statement=_shorten(shown.text),
            quotation=_shorten(shown.sentence),
            beginning=shown.sample.beginning,
            key=tuple(in_text[each] for each in sorted(key, key=shown.stems.index)),
            taught=taught,
            control=control,
            p_value=self.counts.p_value(keys),
            words=tuple(in_text.get(stem) or wordings.written(stem) for stem in further[:_MOST_WORDS]),
            numbers=tuple(wordings.numbers),
        )


def _chosen(statements: Sequence[Statement], wanted: set[str], sizes: tuple[int, int], level: float) -> list[Claim]:
    """Claims among the taught statements with a wanted stem, the one that adds most first.

    Args:
        sizes: beginnings of the taught and of the control side.
        level: largest p of a key.
    """
    claims = _Claims(statements, sizes, level)
    candidates = [each for each in statements if each.sample.taught and not wanted.isdisjoint(each.stems)]
    in_other_words: list[Statement] = []
    # What a statement adds only falls as others are told, so one that still adds more than the next one could is best.
    waiting = [(-claims.gain(each), not each.finished, place) for place, each in enumerate(candidates)]
    heapq.heapify(waiting)
    while waiting and len(claims.found) < MOST_CLAIMS:
        _, unfinished, place = heapq.heappop(waiting)
        statement = candidates[place]
        adds = claims.gain(statement)
        if waiting and (-adds, unfinished, place) > waiting[0]:
            heapq.heappush(waiting, (-adds, unfinished, place))
            continue
        if adds <= 0:
            break
        key = claims.counts.key_of(statement, claims.told, claims.said_together, level)
        if key is None:
            in_other_words.append(statement)
        else:
            claims.tell(key, statement)
            # Another statement may stand for the claim, and leave what is particular to this one untold.
            heapq.heappush(waiting, (-adds, unfinished, place))
    # Details may stand in the wordings of what is told already.
    for statement in in_other_words:
        while (
            len(claims.found) < MOST_CLAIMS
            and claims.gain(statement) > 0
            and (key := claims.counts.key_of(statement, claims.told, claims.keys, level))
        ):
            claims.tell(key, statement)
    return claims.claims()


def _with_stock(claims: Sequence[Claim], stock: Sequence[StockSentence], sizes: tuple[int, int]) -> list[Claim]:
    """The claims, with the stock sentences that none of them tells before those that are less sure; stock questions,
    which state nothing, behind all.
    """
    told = [{stem for word in claim.key for stem in stems_of(word)} for claim in claims]
    found, asked = list(claims), []
    for each in [each for each in stock if not any(key <= set(stems_of(each.sentence)) for key in told)][:_MOST_STOCK]:
        sentence, p_value = _shorten(each.sentence), upper_tail(each.taught, sizes[0], 0, sizes[1])
        claim = Claim(sentence, sentence, each.beginning, (), each.taught, 0, p_value)
        if asks(each.sentence):
            asked.append(claim)
        else:
            place = next((place for place, other in enumerate(found) if other.p_value > p_value), len(found))
            found.insert(place, claim)
    return [*found, *asked]


def _has_word(stock: StockSentence, about: str) -> bool:
    return not set(stock.words).isdisjoint(words_of(about))


def _shorten(text: str) -> str:
    words = text.split()
    short = text if len(words) <= _QUOTE_WORDS else " ".join(words[:_QUOTE_WORDS]) + " …"
    return clip(short, _QUOTE_CHARACTERS)[0]
