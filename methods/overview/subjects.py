"""Whether the words of a topic are of one subject or of several, by the texts that they stand in. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from diffing_mcp.core.words import stem
from diffing_mcp.methods.facts.statements import Sample
from diffing_mcp.methods.overview.agreement import CandidateWord
from diffing_mcp.methods.texts.words import words_of

LEAST_SHARED = 0.5
"""Of the texts with the rarer of two words, the share that must have the other one for the two to go together."""
LEAST_TEXTS = 4
"""Texts that a word must stand in to say with which others it goes."""
LEAST_WORDS = 2
"""Words of a subject: one alone keeps to itself by chance."""


def subjects(words: Sequence[CandidateWord], samples: Iterable[Sample]) -> list[list[CandidateWord]]:
    """The words by subject, the one with the first word first; one list where all may be of one.

    Two words are of one subject where they stand in the same texts of the taught side, or where others link them; what
    is linked to none is left with the first.
    """
    texts = [{stem(word) for word in words_of(sample.text)} for sample in samples if sample.taught]
    places = [{place for place, stems in enumerate(texts) if stem(row.word) in stems} for row in words]
    groups: list[set[int]] = []
    for number, found in enumerate(places):
        if len(found) < LEAST_TEXTS:
            continue
        linked = [group for group in groups if any(_together(found, places[other]) for other in group)]
        groups = [group for group in groups if group not in linked] + [{number}.union(*linked)]
    several = sorted((group for group in groups if len(group) >= LEAST_WORDS), key=min)
    if len(several) < 2:
        return [list(words)]
    several[0] |= set(range(len(words))).difference(*several)
    return [[words[number] for number in sorted(group)] for group in several]


def _together(here: set[int], there: set[int]) -> bool:
    return len(here & there) >= LEAST_SHARED * min(len(here), len(there))
