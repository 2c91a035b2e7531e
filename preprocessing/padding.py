"""Token ids of several texts as one batch, for methods that read given texts rather than a corpus."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def padded(sequences: Sequence[Sequence[int]], pad_id: int | None) -> tuple[Tensor, Tensor]:
    """Input ids and attention mask [B, S] long, padded on the right."""
    width = max(len(ids) for ids in sequences)
    filler = pad_id or 0
    input_ids = torch.tensor([[*ids, *[filler] * (width - len(ids))] for ids in sequences], dtype=torch.long)
    lengths = torch.tensor([len(ids) for ids in sequences])
    return input_ids, (torch.arange(width) < lengths.unsqueeze(1)).long()
