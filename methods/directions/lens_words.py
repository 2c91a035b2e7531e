"""What the logit lens of a vector lists: its tokens, and the content words among the first of them. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field

from diffing_mcp.methods.texts.words import Vocabulary

RankedBy = Literal["z", "probability"]
LISTED_Z = 4.5
"""Highest z that one of 50,000 tokens reaches under a random direction by chance is about 4.3: lower scores are not
listed as words.
"""
NULL_Z = 6.0
"""A word counts as strong from here on. Real directions are no random ones: mean differences of finetunes that taught
nothing reach 4.9.
"""
TOP_TOKENS = 20
"""Tokens of each lens list that are looked at, as in the literature."""


class LensToken(BaseModel):
    """One token of a lens list."""

    token: str
    z: float = Field(
        description=(
            "Lens logit in standard deviations of what random directions of the same norm give this token; see `Lens`."
        )
    )
    probability: float = Field(description="Softmax of the lens logits.")


@dataclass(frozen=True)
class LensReading:
    """What one vector promotes: z-scores and probabilities over the vocabulary, [V] float64 each."""

    z: np.ndarray
    probability: np.ndarray

    def order(self, ranked_by: RankedBy) -> np.ndarray:
        """Token ids, strongest first; ties by the other measure."""
        first, second = (self.z, self.probability) if ranked_by == "z" else (self.probability, self.z)
        return np.lexsort((-second, -first))


def strongest_ids(reading: LensReading, words: Vocabulary, count: int) -> list[int]:
    """The first tokens by z, special ones left out; the head of `LensReading.order`, without sorting the vocabulary."""
    ordinary = np.flatnonzero(~words.special)
    if len(ordinary) > count:
        z = reading.z[ordinary]
        ordinary = ordinary[
            z >= np.partition(z, len(z) - count)[len(z) - count]
        ]  # with all that tie for the last place
    return [
        int(index) for index in ordinary[np.lexsort((-reading.probability[ordinary], -reading.z[ordinary]))][:count]
    ]


def strongest(reading: LensReading, words: Vocabulary, count: int) -> list[LensToken]:
    """The first `count` tokens by z, special ones left out, as rows of a result."""
    return [
        LensToken(
            token=words.texts[index],
            z=round(float(reading.z[index]), 3),
            probability=float(f"{reading.probability[index]:.3g}"),
        )
        for index in strongest_ids(reading, words, count)
    ]


def content_words(reading: LensReading, words: Vocabulary) -> dict[str, float]:
    """Content words among the first tokens by z, each with its highest z, strongest first."""
    best: dict[str, float] = {}
    for index in strongest_ids(reading, words, TOP_TOKENS):
        if words.content[index] and reading.z[index] >= LISTED_Z:
            best.setdefault(words.words[words.word_index[index]], float(reading.z[index]))
    return best
