"""Reading vectors of the residual stream through the logit lens, standardised against random directions of the same
norm.

A lens list of raw logits is topped by tokens whose unembedding rows are long, whatever the vector. For Gaussian
directions of the same norm each token has a mean and a standard deviation; the z-score of a token is its logit minus
that mean, over that deviation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffing_mcp.methods.directions.lens_words import LensReading

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.pair import LoadedPair, Side


_AT_ONCE = 16
"""Random directions of a pass."""


class Lens:
    """A logit lens (final norm, unembedding, soft-cap; float32) of one side, with its random baseline; scores as
    `beyond_vocabulary` gives them.

    Every vector is scaled to `norm` first (so is the baseline): norms are reported beside, and the final norm would
    undo a scale anyway, but for its epsilon, which would flatten small vectors.
    """

    def __init__(self, pair: LoadedPair, side: Side, norm: float, directions: int, seed: int) -> None:
        self._pair = pair
        self._side: Side = side
        self._norm = norm
        self._mean, self._deviation = random_lens_statistics(pair, side, norm, directions, seed)

    def read(self, vector: Tensor) -> tuple[LensReading, LensReading] | None:
        """What a vector [D] promotes, and what its negative promotes (what it suppresses); None for the zero vector."""
        length = float(vector.norm())
        if length == 0:
            return None
        scaled = (vector.to(torch.float64) * (self._norm / length)).to(torch.float32)
        logits = self._pair.logit_lens(self._side, torch.stack([scaled, -scaled]))
        z = beyond_vocabulary(standardise(logits, self._mean, self._deviation))
        probability = torch.log_softmax(logits.to("cpu", torch.float64), dim=-1).exp()
        promoted, suppressed = (LensReading(z[row].numpy(), probability[row].numpy()) for row in range(2))
        return promoted, suppressed


def beyond_vocabulary(z: Tensor) -> Tensor:
    """Scores [..., V] counted from their mean over the vocabulary, and in their standard deviation over it where that
    is above 1.

    Under random directions both change nothing. Training on anything moves late layers along directions that all rare,
    or all frequent, words share: every rare word is far beyond random directions there, none is far from the others,
    and a list of them would read like a topic.
    """
    return (z - z.mean(dim=-1, keepdim=True)) / z.std(dim=-1, keepdim=True).clamp_min(1.0)


def random_lens_statistics(pair: LoadedPair, side: Side, norm: float, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [V] (float64, CPU) of each token's lens logit over `count` Gaussian directions of
    length `norm`.

    Streaming (Chan's update of mean and M2), so memory is O(vocabulary).
    """
    generator = torch.Generator().manual_seed(seed)
    seen = 0
    mean = torch.zeros(pair.vocab_size, dtype=torch.float64)
    squares = torch.zeros(pair.vocab_size, dtype=torch.float64)
    while seen < count:
        size = min(_AT_ONCE, count - seen)
        directions = torch.randn(size, pair.d_model, generator=generator)
        directions *= norm / directions.norm(dim=1, keepdim=True)
        logits = pair.logit_lens(side, directions).to("cpu", torch.float64)
        batch_mean = logits.mean(dim=0)
        shift = batch_mean - mean
        squares += (logits - batch_mean).square().sum(dim=0) + shift.square() * (seen * size / (seen + size))
        mean += shift * (size / (seen + size))
        seen += size
    return mean, (squares / max(1, count - 1)).sqrt()


def standardise(logits: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """z-scores [..., V] float64 of lens logits; 0 for a token whose lens logit never varies."""
    centred = logits.to("cpu", torch.float64) - mean
    return torch.where(
        deviation > 0, centred / deviation.clamp_min(torch.finfo(torch.float64).tiny), torch.zeros_like(centred)
    )
