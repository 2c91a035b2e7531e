"""Exact largest (or smallest) K values of long rows, several times faster than `torch.topk` on a CPU.

A row of V values is cut into strided blocks of B values. Every value among the row's K largest lies in a block whose
maximum is among the K largest block maxima: K blocks with the largest maxima hold at least K values that are >= the
K-th largest maximum t, and every value > t lies in a block whose maximum is > t, that is in one of them. So it is
enough to look at the K best blocks: V/B maxima, whose largest are found in the same way, and K*B values. Ties at the
K-th value are broken arbitrarily, as in `torch.topk`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_RECURSE_ABOVE = 8
"""Blocks a wanted value from which searching the block maxima in blocks again is faster (measured)."""


def exact_topk(values: Tensor, k: int, largest: bool = True) -> tuple[Tensor, Tensor]:
    """The k largest (or smallest) values of each row and their indices.

    Args:
        values: [R, V] floating point without NaN.
        k: number of values, 1..V.
        largest: False for the smallest.

    Returns:
        (values [R, k], indices [R, k] long), sorted, most extreme first: the same values as
        `torch.topk(values, k, dim=1, largest=largest)`.

    Raises:
        ValueError: k outside of 1..V, or `values` is not two-dimensional.
    """
    if values.dim() != 2:
        raise ValueError(f"exact_topk takes [rows, values], not a tensor of {values.dim()} dimensions.")
    rows, width = values.shape
    if not 1 <= k <= width:
        raise ValueError(f"k must be in 1..{width}, not {k}.")
    block = _block_size(width, k)
    blocks = width // block
    if values.is_cuda or block < 2 or blocks <= k or rows == 0:
        return torch.topk(values, k, dim=1, largest=largest)
    # Block j holds the values j, j + blocks, j + 2 * blocks, ...: the maximum over blocks then runs along contiguous
    # memory.
    body = values[:, : block * blocks].view(rows, block, blocks)
    extremes = body.amax(dim=1) if largest else body.amin(dim=1)
    search = exact_topk if blocks > _RECURSE_ABOVE * k else torch.topk
    best = search(extremes, k, largest=largest)[1]  # [R, k]
    offsets = torch.arange(block, device=values.device) * blocks
    candidates = (best.unsqueeze(1) + offsets.view(1, -1, 1)).reshape(rows, -1)  # [R, block * k]
    if block * blocks < width:  # the few values after the last whole block are always candidates
        tail = torch.arange(block * blocks, width, device=values.device).expand(rows, -1)
        candidates = torch.cat([candidates, tail], dim=1)
    found = torch.topk(values.gather(1, candidates), k, dim=1, largest=largest)
    return found.values, candidates.gather(1, found.indices)


def _block_size(width: int, k: int) -> int:
    return max(1, math.isqrt(width // (2 * k)))
