"""Exact principal components of activations, streamed: one pass for the covariances, one for the projections.

Memory is a few matrices [d_model, d_model]; it does not depend on the number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from diffing_mcp.methods.examples.top import Found, TopExamples

if TYPE_CHECKING:
    from diffing_mcp.core.progress import Progress
    from diffing_mcp.preprocessing.activations import ActivationBlock, PairedActivations

ROWS_AT_ONCE = 8192
BIN_QUANTILES = (0.5, 0.9, 0.99)
"""Inner edges of the bins of examples, as quantiles of an end's scores above 0."""


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
        """Rows [N, D] float32 on the device of the sums. The product of one block is taken in float32, the sum over
        blocks in float64.
        """
        shifted = rows - self.shift
        self.count += len(rows)
        self.total += shifted.sum(0, dtype=torch.float64)
        self.products += (shifted.T @ shifted).double()

    def plus(self, other: Covariance) -> Covariance:
        """Of the rows of both, which have the same shift."""
        return Covariance(
            self.shift, self.count + other.count, self.total + other.total, self.products + other.products
        )

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
    """Largest eigenvalues [K] and their unit eigenvectors [K, D] of a symmetric matrix [D, D]; float64. K is `count` or
    D, whichever is less.
    """
    values, vectors = torch.linalg.eigh(matrix)
    count = min(count, len(values))
    return values.flip(0)[:count], vectors.T.flip(0)[:count].contiguous()


def stability(components: Tensor, halves: tuple[Tensor, Tensor]) -> Tensor:
    """[K] least |cosine| of each component [K, D] with the nearest of either half's components [K, D]."""
    nearest = [(components @ half.T).abs().amax(dim=1) for half in halves]
    return torch.minimum(*nearest).clamp_max(1.0)


@dataclass(frozen=True)
class Projections:
    """Tokens along the 2 K ends of K components. Feature 2 k is the positive end of component k, feature 2 k + 1 its
    negative one.

    Attributes:
        found: the furthest tokens of every end and quantile bin, one a sample; scores are lengths along that end, above
            0.
        samples: sample -> [tokens, K] float32 projections of all its tokens, NaN where a token was left out, for the
            samples in `found`.
    """

    found: Found
    samples: dict[int, np.ndarray]

    def token_scores(self, feature: int, sample: int) -> np.ndarray:
        """[tokens] float32 along an end, for each token of the sample."""
        scores: np.ndarray = self.samples[sample][:, feature // 2] * (1 if feature % 2 == 0 else -1)
        return scores


def furthest(
    activations: PairedActivations, of: str, mean: Tensor, components: Tensor, wanted: int, progress: Progress
) -> Projections:
    """The `wanted` tokens of every quantile bin with the largest projections of rows minus `mean` [D] on both ends of
    `components` [K, D].

    A second pass. The edges of an end's bins are the `BIN_QUANTILES` of its scores above 0, estimated from up to
    `ROWS_AT_ONCE` rows drawn at random.
    """
    device = components.device
    directions, offset = components.float().T, (components @ mean).float()

    def project(block: ActivationBlock) -> Tensor:
        rows = block.difference if of == "difference" else block.base if of == "base" else block.finetuned
        return (rows.to(device) @ directions - offset).cpu()

    top = TopExamples(wanted, _edges(project(next(iter(activations.blocks(ROWS_AT_ONCE, seed=0))))), least=0.0)
    features = torch.arange(2 * len(components))[:, None]

    def add(projected: Tensor, samples: Tensor, tokens: Tensor) -> None:
        top.add(features, _ends(projected).T, samples, tokens)

    # Bins need whole samples: the last one of a block waits for its rest.
    held: tuple[Tensor, Tensor, Tensor] | None = None
    for block, _ in _blocks(activations, progress, "projections"):
        new = (project(block), activations.locate(block.tokens)[0], block.tokens)
        joined = new if held is None else tuple(torch.cat(parts) for parts in zip(held, new, strict=True))
        whole = joined[1] < joined[1][-1]
        add(*(part[whole] for part in joined))
        held = (joined[0][~whole], joined[1][~whole], joined[2][~whole])
    if held is not None:
        add(*held)
    found = top.found()  # positions are still indices of tokens
    samples, places = activations.locate(torch.from_numpy(found.positions))
    kept: dict[int, np.ndarray] = {}
    for sample, first in dict(
        zip(samples.tolist(), (torch.from_numpy(found.positions) - places).tolist(), strict=True)
    ).items():
        size = len(activations.sample_ids(sample))
        kept[sample] = np.full((size, len(components)), np.nan, dtype=np.float32)
        for block in activations.blocks(size, start=first, stop=first + size):
            kept[sample][(block.tokens - first).numpy()] = project(block).numpy()
    return Projections(replace(found, positions=places.numpy() + activations.first_position), kept)


def _ends(projected: Tensor) -> Tensor:
    """[N, 2 K] scores of both ends of projections [N, K]."""
    return torch.stack([projected, -projected], dim=2).flatten(1)


def _edges(projected: Tensor) -> np.ndarray:
    """[2 K, E] float64, quantiles of the scores above 0 at each end; 0 where there are none."""
    scores = _ends(projected).double().numpy()
    above = [column[column > 0] for column in scores.T]
    return np.stack(
        [np.quantile(values, BIN_QUANTILES) if len(values) else np.zeros(len(BIN_QUANTILES)) for values in above]
    )


def _blocks(activations: PairedActivations, progress: Progress, doing: str) -> Iterator[tuple[ActivationBlock, Tensor]]:
    """Blocks in the order of the text, with 1 [N] where a row's sample is odd."""
    done = 0
    for block in activations.blocks(ROWS_AT_ONCE):
        progress(done, activations.num_tokens, f"{doing} at layer {activations.layer}")
        yield block, activations.locate(block.tokens)[0] % 2
        done += len(block.tokens)
