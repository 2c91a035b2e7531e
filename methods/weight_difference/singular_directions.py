"""Singular values and directions of a weight difference, and what the directions read as.

LoRA factors are decomposed exactly, large dense differences by a randomised method. Directions that are written read
through the logit lens, those that are read against the input embedding, vocabulary-sized ones by their own entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from diffing_mcp.methods.directions.lens import Lens
from diffing_mcp.methods.directions.lens_words import LensReading
from diffing_mcp.model_pairs.interventions import unit_length
from diffing_mcp.model_pairs.modules import LowRank

if TYPE_CHECKING:
    from diffing_mcp.core.progress import Progress
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import Side

EXACT_UP_TO = 512
"""Dense differences whose smaller side is at most this long are decomposed exactly."""
_OVERSAMPLED = 12
_POWER_ITERATIONS = 8
_ROWS = 8192
_DIRECTIONS = 64
BothSigns = tuple[LensReading, LensReading]


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


def read_written(lens: Lens, directions: Sequence[Tensor], progress: Progress) -> list[BothSigns]:
    """What each direction [d_model] promotes, and what its negative does."""
    found = []
    for done, direction in enumerate(directions):
        progress(done, len(directions), "reading directions")
        readings = lens.read(direction)
        if readings is not None:  # unit vectors are never zero
            found.append(readings)
    return found


def read_embeddings(pair: LoadedPair, side: Side, directions: Sequence[Tensor], progress: Progress) -> list[BothSigns]:
    """Cosine of every input embedding with each direction [d_model], standardised over the vocabulary.

    The gain of the norm before the module is not folded in. Memory: vocabulary x 64 directions.
    """
    found: list[BothSigns] = []
    for start in range(0, len(directions), _DIRECTIONS):
        progress(start, len(directions), "reading directions")
        group = unit_length(torch.stack(list(directions[start : start + _DIRECTIONS])).float())
        cosines = torch.empty(pair.vocab_size, group.shape[0])
        for first in range(0, pair.vocab_size, _ROWS):
            last = min(first + _ROWS, pair.vocab_size)
            cosines[first:last] = unit_length(pair.token_rows(side, range(first, last), "input")) @ group.T
        found += [read_entries(column) for column in cosines.T]
    return found


def read_entries(values: Tensor) -> BothSigns:
    """Entries [V] of a vocabulary-sized vector, standardised over the vocabulary; no probabilities belong to them."""
    centred = values.double() - values.double().mean()
    deviation = float(centred.std())
    z = (centred / deviation if deviation else torch.zeros_like(centred)).numpy()
    nothing = np.zeros_like(z)
    return LensReading(z, nothing), LensReading(-z, nothing)
