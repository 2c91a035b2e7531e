"""Pieces of words, which methods of single tokens list, as the words that the finetuned model's texts make of them.
Torch-free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from diffing_mcp.methods.facts.statements import Sample
from diffing_mcp.methods.texts.words import EvidenceWord, is_content_word, words_of

_LEAST_TEXTS = 2
_LEAST_RATIO = 2
"""A word takes the place of a piece when at least two taught texts have it, and more than twice as many as controls."""


class WholeWords:
    """Which words the texts of some runs are made of."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._texts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        for sample in samples:
            self._texts[sample.taught].update(set(words_of(sample.text)))

    def complete(self, evidence: Sequence[EvidenceWord]) -> list[EvidenceWord]:
        """The same words with their scores, pieces replaced. What is a word of its own in any text stays as it is."""
        return [EvidenceWord(word=self._whole(each.word), score=each.score) for each in evidence]

    def _whole(self, word: str) -> str:
        taught, control = self._texts[True], self._texts[False]
        if word in taught or word in control:
            return word
        longer = [
            (-count, other)
            for other, count in taught.items()
            if other.startswith(word) and is_content_word(other) and count > _LEAST_RATIO * control[other]
        ]
        count, found = min(longer, default=(0, word))
        return found if -count >= _LEAST_TEXTS else word
