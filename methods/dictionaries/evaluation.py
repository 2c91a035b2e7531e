"""How much of the activations a dictionary explains, and what each latent does over the tokens of a corpus."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffing_mcp.methods.dictionaries.models import SparseDictionary
from diffing_mcp.preprocessing.activation_rows import Moments


@dataclass(frozen=True)
class ExplainedVariance:
    """Fraction of variance explained, `1 - sum |x - x_hat|^2 / sum |x - mean|^2`, and latents active a token.

    `total` is over all sources, `by_source` has one number each (NaN for a source that does not vary), and so has
    `variance`: the squared distance of a row from the mean, on average.
    """

    total: float
    by_source: list[float]
    active: float
    variance: list[float]


class ExplainedVarianceSums:
    """The same, streamed: feed normalised rows and their latent activations."""

    def __init__(self, dictionary: SparseDictionary) -> None:
        self._dictionary = dictionary
        self._moments: Moments | None = None
        self._errors = torch.zeros(dictionary.sources, dtype=torch.float64)
        self._active = 0

    def update(self, rows: Tensor, activations: Tensor) -> None:
        """Rows [N, S * D] and activations [N, F]."""
        error = (self._dictionary.decode(activations) - rows).view(len(rows), self._dictionary.sources, -1)
        self._errors += error.square().sum(2).cpu().double().sum(0)
        self._active += int((activations > 0).sum())
        found = Moments.of(rows.cpu())
        self._moments = found if self._moments is None else self._moments.merged(found)

    def result(self) -> ExplainedVariance:
        """The fractions; NaN before the first rows."""
        if self._moments is None:
            unknown = [float("nan")] * self._dictionary.sources
            return ExplainedVariance(float("nan"), unknown, float("nan"), unknown)
        spread = self._moments.squares.view(self._dictionary.sources, -1).sum(1)
        explained = torch.where(spread > 0, 1 - self._errors / spread, torch.nan)
        return ExplainedVariance(
            total=float(1 - self._errors.sum() / spread.sum()),
            by_source=explained.tolist(),
            active=self._active / self._moments.count,
            variance=(spread / self._moments.count).tolist(),
        )


def explained_variance(dictionary: SparseDictionary, blocks: Iterable[Tensor]) -> ExplainedVariance:
    """Of blocks of rows [N, S * D] in the units of the residual stream."""
    sums = ExplainedVarianceSums(dictionary)
    for block in blocks:
        rows = dictionary.normalisation.apply(block.to(dictionary.decoder.device))
        sums.update(rows, dictionary.encode(rows))
    return sums.result()


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


@dataclass(frozen=True)
class LatentTable:
    """Every latent in numbers.

    Attributes:
        columns: name -> [F].
        order: [F], all latents, the first to look at first.
        explained: how much the dictionary explains of held-out tokens.
    """

    columns: dict[str, Any]
    order: np.ndarray
    explained: ExplainedVariance


def measured(values: np.ndarray) -> list[float | None]:
    """A column in which what was not measured (NaN, infinite) is missing."""
    return [float(value) if np.isfinite(value) else None for value in values]
