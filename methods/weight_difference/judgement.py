"""When a weight difference says that something stands out. See docs/decisions/null-criterion.md.

How large a change is says nothing: no pair shows how large that of another seed or of a finetune on nothing in
particular would have been. Only words can stand out: one direction that writes to the residual stream and promotes
several content words far beyond random directions.

Measured on the bundled organisms (180 write directions each): the control's highest word has z 5.7, two seeds of one
recipe differ by a direction with one word at 6.7; taught organisms reach `roman` 8.0 or `word` 8.7 with `words` 7.1,
but no direction lists three strong words. So one strong word is worth a look and no finding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffing_mcp.methods.directions.lens_words import NULL_Z, Reading, content_words
from diffing_mcp.methods.texts.words import Vocabulary
from diffing_mcp.methods.weight_difference.rows import DirectionRow, DirectionWord

NEEDED_STRONG_WORDS = 3
"""Strong content words of one direction and sign that make a finding."""


@dataclass(frozen=True)
class Scored:
    """The content words of one direction and sign, strongest first, and how many of them are strong."""

    words: dict[str, float]
    strong: int

    @property
    def rank(self) -> tuple[int, float]:
        """Sorts readable directions first."""
        return self.strong, max(self.words.values(), default=0.0)


def score(reading: Reading, words: Vocabulary) -> Scored:
    """Content words of one list."""
    found = content_words(reading, words)
    return Scored(found, sum(z >= NULL_Z for z in found.values()))


def judge(rows: Sequence[DirectionRow], scores: Sequence[tuple[Scored, Scored]]) -> tuple[bool, list[DirectionWord]]:
    """Whether one write direction is readable, and the words of all of them, those of the most readable directions
    first.

    Args:
        rows: write directions.
        scores: of each, for both signs.
    """
    best: dict[str, DirectionWord] = {}
    for row, both in zip(rows, scores, strict=True):
        place = row.module if row.layer is None else f"{row.layer}:{row.module}"
        for sign, scored in zip("+-", both, strict=True):
            for word, z in scored.words.items():
                known = best.get(word)
                if known is None or (scored.strong, z) > (known.together, known.z):
                    best[word] = DirectionWord(
                        word=word, z=round(z, 3), direction=f"{place}:{row.index}{sign}", together=scored.strong
                    )
    listed = sorted(
        best.values(), key=lambda row: (row.together < NEEDED_STRONG_WORDS, -row.together, -row.z, row.word)
    )
    return any(scored.strong >= NEEDED_STRONG_WORDS for both in scores for scored in both), listed
