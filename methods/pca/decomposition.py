"""Exact principal components of activations, streamed: one pass for the covariances, one for the projections.

Memory is a few matrices [d_model, d_model]; it does not depend on the number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from methods.top_examples import Found, TopExamples

if TYPE_CHECKING:
    from organisms.progress import Progress
    from preprocessing.activations import ActivationBlock, PairedActivations

ROWS_AT_ONCE = 8192


@dataclass
class Covariance:
    """Count, sum [D] and sum of outer products [D, D] in float64 of rows shifted by a constant."""

    shift: Tensor
    count: int
    total: Tensor
    products: Tensor

    @staticmethod
    def empty(shift: Tensor) -> Covariance:
        """Of no rows yet; `shift` [D] float32 should lie near their mean, for precision."""
        size = len(shift)
        zeros = torch.zeros(size, size, dtype=torch.float64, device=shift.device)
        return Covariance(shift, 0, torch.zeros(size, dtype=torch.float64, device=shift.device), zeros)

    def add(self, rows: Tensor) -> None:
        """Rows [N, D] float32 on the device of the sums. The product of one block is taken in float32, the sum over blocks in float64."""
        shifted = rows - self.shift
        self.count += len(rows)
        self.total += shifted.sum(0, dtype=torch.float64)
        self.products += (shifted.T @ shifted).double()

    def plus(self, other: Covariance) -> Covariance:
        """Of the rows of both, which have the same shift."""
        return Covariance(self.shift, self.count + other.count, self.total + other.total, self.products + other.products)

    @property
    def mean(self) -> Tensor:
        """[D] float64."""
        return self.shift.double() + self.total / max(1, self.count)

    @property
    def matrix(self) -> Tensor:
        """[D, D] float64, divided by the count."""
        count = max(1, self.count)
        return self.products / count - torch.outer(self.total, self.total) / count**2


@dataclass(frozen=True)
class Covariances:
    """Of the differences, in even and odd samples, and of both models over all of them."""

    difference: tuple[Covariance, Covariance]
    base: tuple[Covariance, Covariance]
    finetuned: tuple[Covariance, Covariance]

    def whole(self, name: str) -> Covariance:
        """Over all samples."""
        first, second = getattr(self, name)
        return first.plus(second)


def covariances(activations: PairedActivations, device: torch.device, progress: Progress) -> Covariances:
    """One pass over the rows."""
    sums: dict[str, tuple[Covariance, Covariance]] = {}
    for block, odd in _blocks(activations, progress, "covariances"):
        base, finetuned = block.base.to(device), block.finetuned.to(device)
        for name, rows in (("difference", finetuned - base), ("base", base), ("finetuned", finetuned)):
            if name not in sums:
                shift = rows.mean(0)
                sums[name] = (Covariance.empty(shift), Covariance.empty(shift))
            for half in range(2):
                sums[name][half].add(rows[(odd == half).to(device)])
    return Covariances(**sums)


def principal_components(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Largest eigenvalues [K] and their unit eigenvectors [K, D] of a symmetric matrix [D, D]; float64. K is `count` or D, whichever is less."""
    values, vectors = torch.linalg.eigh(matrix)
    count = min(count, len(values))
    return values.flip(0)[:count], vectors.T.flip(0)[:count].contiguous()


def stability(components: Tensor, halves: tuple[Tensor, Tensor]) -> Tensor:
    """[K] least |cosine| of each component [K, D] with the nearest of either half's components [K, D]."""
    nearest = [(components @ half.T).abs().amax(dim=1) for half in halves]
    return torch.minimum(*nearest).clamp_max(1.0)


def furthest(activations: PairedActivations, of: str, mean: Tensor, components: Tensor, wanted: int, progress: Progress) -> Found:
    """The tokens with the largest projections of rows minus `mean` [D] on the 2 K ends of `components` [K, D], one a sample: a second pass.

    Feature 2 k is the positive end of component k, feature 2 k + 1 its negative one; scores are lengths along that end, above 0.
    """
    device = components.device
    directions, offset = components.float().T, (components @ mean).float()
    top = TopExamples(wanted, least=0.0)
    features = torch.arange(2 * len(components))[:, None]
    for block, _ in _blocks(activations, progress, "projections"):
        rows = block.difference if of == "difference" else block.base if of == "base" else block.finetuned
        projected = rows.to(device) @ directions - offset
        samples, places = activations.locate(block.tokens)
        top.add(features, torch.stack([projected, -projected], dim=2).reshape(len(rows), -1).T, samples, places + activations.first_position)
    return top.found()


def _blocks(activations: PairedActivations, progress: Progress, doing: str) -> Iterator[tuple[ActivationBlock, Tensor]]:
    """Blocks in the order of the text, with 1 [N] where a row's sample is odd."""
    done = 0
    for block in activations.blocks(ROWS_AT_ONCE):
        progress(done, activations.num_tokens, f"{doing} at layer {activations.layer}")
        yield block, activations.locate(block.tokens)[0] % 2
        done += len(block.tokens)
