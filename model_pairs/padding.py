"""Token ids of several texts as one batch. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def padded(sequences: Sequence[Sequence[int]], pad_id: int | None) -> tuple[Tensor, Tensor]:
    """Input ids and attention mask [B, S] long, padded on the right."""
    width = max(map(len, sequences))
    input_ids = torch.tensor([[*ids, *[pad_id or 0] * (width - len(ids))] for ids in sequences], dtype=torch.long)
    lengths = torch.tensor([len(ids) for ids in sequences])
    return input_ids, (torch.arange(width) < lengths.unsqueeze(1)).long()


def left_padded(sequences: Sequence[Sequence[int]], pad_id: int | None) -> tuple[Tensor, Tensor]:
    """The same, padded on the left: all texts go on at the same column."""
    input_ids, mask = padded([ids[::-1] for ids in sequences], pad_id)
    return input_ids.flip(1), mask.flip(1)
