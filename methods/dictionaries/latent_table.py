"""What each latent does over the tokens of a corpus: how often and how strongly it fires, and how much it writes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass
class LatentCounts:
    """Streamed over blocks of activations [N, F].

    Attributes:
        tokens: rows seen; fired, largest, squares: [F], tokens at which a latent fired, its largest activation, the sum
            of squared ones.
    """

    tokens: int
    fired: Tensor
    largest: Tensor
    squares: Tensor

    @staticmethod
    def empty(latents: int) -> LatentCounts:
        """Nothing seen."""
        return LatentCounts(0, *(torch.zeros(latents, dtype=torch.float64) for _ in range(3)))

    def update(self, activations: Tensor) -> None:
        """Take in a block."""
        self.tokens += len(activations)
        self.fired += (activations > 0).sum(0).cpu()
        self.largest = torch.maximum(self.largest, activations.amax(0).cpu().double())
        self.squares += activations.square().sum(0).cpu().double()

    @property
    def frequency(self) -> Tensor:
        """[F], share of tokens at which a latent fired."""
        return self.fired / max(1, self.tokens)


def measured(values: np.ndarray) -> list[float | None]:
    """A column in which what was not measured (NaN, infinite) is missing."""
    return [float(value) if np.isfinite(value) else None for value in values]
