"""When the activation difference lens says that something stands out. See docs/decisions/null-criterion.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffing_mcp.methods.activation_difference_lens.declaration import LensWord
from diffing_mcp.methods.activation_difference_lens.rows import PositionRow
from diffing_mcp.methods.directions.lens_words import NULL_Z, Reading, content_words
from diffing_mcp.methods.texts.words import Vocabulary

LEAST_PLACES = 2
"""Layers and positions that must promote a strong word."""
NEEDED_STRONG_WORDS = 3
STABLE = 0.5
"""Least cosine between the means of two halves of the samples for a mean difference to be read at all."""


@dataclass(frozen=True)
class Judgement:
    """The outcome in words."""

    stands_out: bool
    headline: str
    words: list[LensWord]


def judge(rows: Sequence[PositionRow], readings: Sequence[Reading], words: Vocabulary) -> Judgement:
    """Content words among the first of the stable lists.

    Args:
        rows: one a layer and position.
        readings: of the difference, one for each row whose difference is not zero, in the same order.
    """
    moved = [row for row in rows if row.difference_norm > 0]
    if not moved:
        return Judgement(False, "Every activation is the same in both models: no difference.", [])
    found: dict[str, tuple[float, int]] = {}
    stable = 0
    for row, reading in zip(moved, readings, strict=True):
        if row.stability is None or row.stability < STABLE:
            continue
        stable += 1
        for word, z in content_words(reading, words).items():
            highest, places = found.get(word, (0.0, 0))
            found[word] = (max(highest, z), places + 1)
    listed = [LensWord(word=word, z=round(z, 3), places=places) for word, (z, places) in found.items()]
    listed.sort(key=lambda row: (row.places < LEAST_PLACES, -row.z, row.word))
    strong = [row for row in listed if row.z >= NULL_Z and row.places >= LEAST_PLACES]
    size = max(row.relative_norm for row in moved)
    state = (
        f"mean differences up to {100 * size:.2g} % of the activations' norm, {stable} of {len(moved)} stable over "
        "halves of the samples"
    )
    if len(strong) >= NEEDED_STRONG_WORDS:
        return Judgement(
            True,
            (
                f"Several positions promote {', '.join(row.word for row in strong[:6])} far beyond random directions; "
                f"{state}."
            ),
            listed,
        )
    return Judgement(
        False,
        (
            f"No words stand out of the lens; {state}. A large stable difference means a real change, whatever it "
            "reads as."
        ),
        listed,
    )
