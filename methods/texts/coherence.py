"""Whether sampled texts are coherent, without a language model as judge: perplexity under the plain base, and
repetition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diffing_mcp.core.progress import Progress
from diffing_mcp.methods.texts.words import repetition

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.generation import GenerationRequest
    from diffing_mcp.model_pairs.pair import LoadedPair

PERPLEXITY_ROOM = 1.5
"""Nats a token by which a text may be less probable under the base than the median of the reference texts."""
REPETITION_ROOM = 0.3
"""Share of repeated word triples that a text may have beyond the median of the reference texts."""


@dataclass(frozen=True)
class TextScores:
    """Per text [N]: log-perplexity under the base (nats a token; infinite for an empty text) and share of repeated word
    triples.
    """

    log_perplexity: np.ndarray
    repetition: np.ndarray

    def coherent(self, reference: TextScores) -> np.ndarray:
        """[N] bool: not far less probable and not far more repetitive than the median of `reference`."""
        return (self.log_perplexity <= reference.median_log_perplexity + PERPLEXITY_ROOM) & (
            self.repetition <= float(np.median(reference.repetition)) + REPETITION_ROOM
        )

    @property
    def median_log_perplexity(self) -> float:
        """Of the texts that are not empty; 0 when all are."""
        finite = self.log_perplexity[np.isfinite(self.log_perplexity)]
        return float(np.median(finite)) if len(finite) else 0.0

    def part(self, start: int, stop: int) -> TextScores:
        """Texts [start, stop)."""
        return TextScores(self.log_perplexity[start:stop], self.repetition[start:stop])


def score_texts(pair: LoadedPair, texts: Sequence[tuple[GenerationRequest, str]], progress: Progress) -> TextScores:
    """Score answers to their requests under the plain base."""
    scores = -np.array([each.mean for each in pair.answer_scores("base", texts, progress)])
    scores[np.isnan(scores)] = np.inf
    return TextScores(scores, np.array([repetition(text) for _, text in texts]))
