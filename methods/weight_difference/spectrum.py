"""Singular values and directions of a weight difference, from LoRA factors exactly, from large dense ones by a
randomised method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffing_mcp.model_pairs.modules import LowRank

EXACT_UP_TO = 512
"""Dense differences whose smaller side is at most this long are decomposed exactly."""
_OVERSAMPLED = 12
_POWER_ITERATIONS = 8


@dataclass(frozen=True)
class Spectrum:
    """Of a difference D [out, in].

    Attributes:
        norm: Frobenius norm.
        effective_rank: participation ratio (sum s^2)^2 / sum s^4 = |D|^4 / |D D^T|^2, exact however the directions were
            found.
        values: [k] float64, the largest singular values, falling.
        left, right: [out, k] and [in, k] float32, unit singular vectors: what D writes and what it reads.
        how: whether values and vectors are exact or from a randomised method.
    """

    norm: float
    effective_rank: float
    values: Tensor
    left: Tensor
    right: Tensor
    how: Literal["exact", "randomised"]


def spectrum(delta: LowRank | Tensor, count: int, seed: int = 0) -> Spectrum:
    """The `count` largest singular values and directions of a difference that is not zero."""
    if isinstance(delta, LowRank):
        return _of_factors(delta, count)
    if min(delta.shape) <= EXACT_UP_TO:
        left, values, right = torch.linalg.svd(delta.double(), full_matrices=False)
        return _exact(left, values, right.T, count)
    left, values, right = randomised_svd(delta, min(count, *delta.shape), seed)
    small = delta if delta.shape[0] <= delta.shape[1] else delta.T
    square = float(torch.linalg.vector_norm(delta, dtype=torch.float64)) ** 2
    fourth = float(torch.linalg.vector_norm(small @ small.T, dtype=torch.float64)) ** 2
    return Spectrum(square**0.5, square**2 / fourth, values.double(), left, right, "randomised")


def _of_factors(delta: LowRank, count: int) -> Spectrum:
    """SVD of left @ right without forming it: QR of both, then the SVD of the small core."""
    left_basis, left_core = torch.linalg.qr(delta.left)
    right_basis, right_core = torch.linalg.qr(delta.right.T)
    left, values, right = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    return _exact(left_basis @ left, values, right_basis @ right.T, count)


def _exact(left: Tensor, values: Tensor, right: Tensor, count: int) -> Spectrum:
    squares = values.square()
    # Factors that cancel (two adapters) leave directions of rounding noise, which must not be read.
    kept = min(count, int((values > values[0] * 1e-9).sum()))
    return Spectrum(
        norm=float(squares.sum().sqrt()),
        effective_rank=float(squares.sum().square() / squares.square().sum()) if float(squares.sum()) else 0.0,
        values=values[:kept],
        left=left[:, :kept].float(),
        right=right[:, :kept].float(),
        how="exact",
    )


def randomised_svd(matrix: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Largest singular triplets of a float32 matrix [m, n]: left [m, k], values [k], right [n, k].

    Randomised subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4), with a generator of its own, so
    that threads do not disturb it.
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(count + _OVERSAMPLED, *matrix.shape)
    basis = torch.linalg.qr(matrix @ torch.randn(matrix.shape[1], size, generator=generator))[0]
    for _ in range(_POWER_ITERATIONS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis)[0])[0]
    left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ left)[:, :count], values[:count], right[:count].T
