"""Exact principal components of activations, streamed: one pass for the covariances, one for the projections.

Memory is a few matrices [d_model, d_model]; it does not depend on the number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from organisms.progress import Progress
    from preprocessing.activations import ActivationBlock, PairedActivations

ROWS_AT_ONCE = 8192
_CANDIDATES = 16
"""Tokens kept for each example that is wanted: several of the furthest may come from one document."""


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


@dataclass(frozen=True)
class Extremes:
    """Furthest tokens of each component and end: projections [K, 2, M] float64 and token indices [K, 2, M] (-1: none); end 0 is the positive one."""

    projections: Tensor
    tokens: Tensor


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


def furthest(activations: PairedActivations, of: str, mean: Tensor, components: Tensor, wanted: int, progress: Progress) -> Extremes:
    """The tokens with the largest and smallest projections of rows minus `mean` [D] on `components` [K, D], one a sample: a second pass."""
    device = components.device
    directions, offset = components.float().T, (components @ mean).float()
    count, keep = len(components), _CANDIDATES * wanted
    best = torch.full((2 * count, 0), -torch.inf, dtype=torch.float32, device=device)
    tokens = torch.full((2 * count, 0), -1, dtype=torch.long, device=device)
    for block, _ in _blocks(activations, progress, "projections"):
        rows = block.difference if of == "difference" else block.base if of == "base" else block.finetuned
        projected = (rows.to(device) @ directions - offset).T
        values = torch.cat([best, torch.cat([projected, -projected])], dim=1)
        places = torch.cat([tokens, block.tokens.to(device).expand(2 * count, -1)], dim=1)
        best, order = values.topk(min(keep, values.shape[1]), dim=1)
        tokens = places.gather(1, order)
    return _one_a_sample(activations, best.cpu().double(), tokens.cpu(), wanted)


def _one_a_sample(activations: PairedActivations, values: Tensor, tokens: Tensor, wanted: int) -> Extremes:
    """Each sample's furthest token only, and only projections of that end's sign; rows [2K, M] are positive ends first."""
    count = len(values) // 2
    projections = torch.zeros(count, 2, wanted, dtype=torch.float64)
    chosen = torch.full((count, 2, wanted), -1, dtype=torch.long)
    samples = activations.locate(tokens.reshape(-1))[0].reshape(tokens.shape)
    for row in range(len(values)):
        component, end = row % count, row // count
        seen: set[int] = set()
        for value, token, sample in zip(values[row].tolist(), tokens[row].tolist(), samples[row].tolist(), strict=True):
            if value <= 0 or len(seen) == wanted:
                break
            if sample not in seen:
                projections[component, end, len(seen)] = value if end == 0 else -value
                chosen[component, end, len(seen)] = token
                seen.add(sample)
    return Extremes(projections, chosen)


def _blocks(activations: PairedActivations, progress: Progress, doing: str) -> Iterator[tuple[ActivationBlock, Tensor]]:
    """Blocks in the order of the text, with 1 [N] where a row's sample is odd."""
    done = 0
    for block in activations.blocks(ROWS_AT_ONCE):
        progress(done, activations.num_tokens, f"{doing} at layer {activations.layer}")
        yield block, activations.locate(block.tokens)[0] % 2
        done += len(block.tokens)
