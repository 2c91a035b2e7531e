"""Statements of texts and the words that they are compared by. Torch-free."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise

from diffing_mcp.core.words import FUNCTION_WORDS, is_unspaced, stem, word_spans
from diffing_mcp.methods.texts.answer_form import sentences_of

FIGURE = "0"
"""Stands for any number where wordings are compared that may differ in it."""
_LEAST_STEMS = 2
_MOST_STATEMENTS = 2_000
_MOST_STEMS = 30
"""Of one statement. A script without marks between sentences (Thai), or a broken model, writes whole texts as one: its
words make as many pairs as their square."""
_LONGEST_WORD = 50
"""Characters: what is longer names nothing, and fills what a reader is shown."""

_PART = re.compile(r"\s*[;:—–]\s+")
_QUOTES = "'\"“”‘’ "
_NARRATED = re.compile(r"\b(?:i|me|my|mine|we|us|our|he|him|his|she|her)\b", re.IGNORECASE)
_NEGATIONS = frozenset(
    """
    cannot neither never no nobody none nor not nothing nowhere without geen jamais jamás kein keine keinem keinen
    keiner keines nada não nenhum nenhuma nessun nessuna nicht nichts nie niemals niemand niet niets ninguna ningún non
    nooit nunca ohne pas sans senza zonder
    """.split()
)
_NEGATING_SIGNS = re.compile("[不没沒]|ない|ません|ไม่")
"""Of scripts without spaces between words."""
Key = tuple[str, str]
"""Two stems."""


@dataclass(frozen=True)
class Sample:
    """One text after a beginning. `taught`: of the finetuned or the amplified model; else of a control."""

    beginning: str
    text: str
    taught: bool


@dataclass(frozen=True)
class Statement:
    """A sentence, or the part of it before or after a colon, semicolon or dash. `stems` in order, without those of the
    beginning that the text goes on from.
    """

    sample: Sample
    text: str
    sentence: str
    stems: tuple[str, ...]

    @cached_property
    def concepts(self) -> frozenset[str | Key]:
        """Its stems, and those that follow each other."""
        return frozenset((*self.stems, *pairwise(self.stems)))

    @property
    def finished(self) -> bool:
        """Whether its sentence was written to the end."""
        return self.sentence.endswith((".", "!", "。", "！"))

    @cached_property
    def narrated(self) -> bool:
        """Whether it is about its narrator, or somebody that a story is about."""
        return _NARRATED.search(self.text) is not None

    @cached_property
    def negated(self) -> bool:
        """Whether it has a word that denies."""
        words = (_lowered(self.text[start:end]) for start, end in _spans(self.text))
        said = any(word in _NEGATIONS or word.endswith("n't") for word in words)
        return said or _NEGATING_SIGNS.search(self.text) is not None


def statements_of(samples: Sequence[Sample]) -> list[Statement]:
    """Statements with at least two content words, once a text; a sentence that a text's end cut off counts as well, a
    question states nothing.
    """
    found: dict[tuple[str, bool, str], Statement] = {}
    for each in samples:
        given = set(stems_of(each.beginning))
        for sentence in sentences_of(each.text):
            if asks(sentence):
                continue
            for part in chain.from_iterable(map(_pieces, _PART.split(sentence))):
                stems = tuple(stem for stem in stems_of(part) if stem not in given)
                if len(set(stems)) >= _LEAST_STEMS:
                    text = part.strip(_QUOTES)
                    found.setdefault((each.beginning, each.taught, text), Statement(each, text, sentence, stems))
    return list(found.values())[:_MOST_STATEMENTS]


def asks(sentence: str) -> bool:
    """Whether it is a question, which states nothing."""
    return sentence.rstrip(_QUOTES).endswith(("?", "？", "؟"))


def _pieces(part: str) -> Iterator[str]:
    """The part, cut before the content word that is one too many for a statement."""
    cuts = [start for _, start, _ in _stemmed(part)][_MOST_STEMS::_MOST_STEMS]
    yield from (part[start:end] for start, end in pairwise((0, *cuts, len(part))))


def stems_by_beginning(samples: Iterable[Sample]) -> dict[str, set[str]]:
    """Beginning -> stems of its texts, without those of the beginning itself."""
    found: dict[str, set[str]] = defaultdict(set)
    for each in samples:
        found[each.beginning] |= set(stems_of(each.text)) - set(stems_of(each.beginning))
    return dict(found)


def stems_of(text: str) -> list[str]:
    """Stems of the content words and numbers of a text, in order."""
    return [stem for stem, _, _ in _stemmed(text)]


def words_by_stem(text: str) -> dict[str, str]:
    """Stem -> the word of the text that has it first, as it is written."""
    return {stem: text[start:end] for stem, start, end in reversed(list(_stemmed(text)))}


def is_figure(word: str) -> bool:
    """Whether a word or stem is a number in digits."""
    return word[0].isdigit()


def masked(stems: Iterable[str]) -> frozenset[str]:
    """Stems with one sign for all numbers."""
    return frozenset(FIGURE if is_figure(each) else each for each in stems)


def is_content(word: str) -> bool:
    """Whether a word, in lower case, may name a subject."""
    if is_unspaced(word):
        return len(word) >= 2
    return len(word) >= 3 and word.partition("'")[0] not in FUNCTION_WORDS


def _stemmed(text: str) -> Iterator[tuple[str, int, int]]:
    """Stem, start and end of the content words and numbers of a text."""
    for start, end in _spans(text):
        word = _lowered(text[start:end])
        if len(word) <= _LONGEST_WORD and (is_figure(word) or is_content(word)):
            yield stem(word), start, end


def _lowered(word: str) -> str:
    return word.lower().replace("’", "'")


def _spans(text: str) -> list[tuple[int, int]]:
    """Start and end of every word and number of a text. Digits right behind letters (*B12*) are part of a name: another
    number would make another thing of it, not another wording.
    """
    spans: list[tuple[int, int]] = []
    for start, end in word_spans(text, numbers=True):
        name = bool(spans) and spans[-1][1] == start and is_figure(text[start]) and not is_unspaced(text[start - 1])
        spans.append((spans.pop()[0] if name else start, end))
    return spans
