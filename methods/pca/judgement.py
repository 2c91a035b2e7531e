"""When PCA says that something stands out. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffing_mcp.methods.directions.lens_words import NULL_Z
from diffing_mcp.methods.pca.declaration import ComponentWord
from diffing_mcp.methods.pca.rows import ComponentRow

STABLE = 0.7
"""Least |cosine| with the components of both halves of the samples for a component to be read at all."""
NEEDED_STRONG_WORDS = 3


@dataclass(frozen=True)
class Judgement:
    """The outcome in words."""

    stands_out: bool
    headline: str
    words: list[ComponentWord]


def control_level(readings: Sequence[Mapping[str, float]]) -> float:
    """The z from which on words count: the least at which none of the base model's own components has enough words.
    Components of any model are no random directions: they read as numbers, names or punctuation far beyond random ones.
    """
    thirds = [
        sorted(reading.values(), reverse=True)[NEEDED_STRONG_WORDS - 1]
        for reading in readings
        if len(reading) >= NEEDED_STRONG_WORDS
    ]
    return max([NULL_Z, *thirds])


def judge(
    rows: Sequence[ComponentRow], words: Sequence[ComponentWord], level: float, of: str, identical: bool
) -> Judgement:
    """Whether one stable component has enough content words beyond the control's level."""
    if identical:
        return Judgement(False, "Every activation is the same in both models: no difference.", [])
    listed = sorted(words, key=lambda row: (-row.z, row.word))
    if of in ("base", "finetuned"):
        return Judgement(
            False, f"Components of the {of} model alone: they say what it varies in, not what was taught.", []
        )
    stable = [row for row in rows if row.stability >= STABLE]
    state = f"{len(stable)} of {len(rows)} components stable over halves of the documents"
    by_vector: dict[str, list[str]] = {}
    for word in listed:
        if word.z > level:
            by_vector.setdefault(word.vector, []).append(word.word)
    telling = {vector: names for vector, names in by_vector.items() if len(names) >= NEEDED_STRONG_WORDS}
    if telling:
        first = max(telling, key=lambda vector: len(telling[vector]))
        return Judgement(
            True,
            (
                f"Component {first} reads as {', '.join(telling[first][:6])}, beyond the base model's own components; "
                f"{state}."
            ),
            listed,
        )
    return Judgement(
        False,
        (
            f"No component reads as words beyond what the base model's own components read as; {state}. Patchscope "
            "may still read them."
        ),
        listed,
    )
