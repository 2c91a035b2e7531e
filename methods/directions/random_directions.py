"""What the logit lens says of random directions: the baseline against which a vector's token scores are standardised.

A lens list of raw logits is topped by tokens whose unembedding rows are long, whatever the vector. For Gaussian
directions of the same norm each token has a mean and a standard deviation; the z-score of a token is its logit minus
that mean, over that deviation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.pair import LoadedPair, Side

_AT_ONCE = 16


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
