"""How often each token is expected under both models, summed while the text streams by."""

from __future__ import annotations

import numpy as np
import torch

from diffing_mcp.core.devices import wide_dtype
from diffing_mcp.preprocessing.batches import LogitChunk


class ExpectedTokens:
    """Expected occurrences of every token: sums of its probability over positions, in float64 (float32 on MPS).

    Texts are dealt to folds by index, so that what is so in one part of the corpus alone can be told from what is so
    everywhere.

    Attributes:
        base, finetuned: [folds, V].
        rows: [folds] int64, positions in each.
    """

    def __init__(self, folds: int, vocab_size: int, device: torch.device | str) -> None:
        device = torch.device(device)
        self.base = torch.zeros(folds, vocab_size, dtype=wide_dtype(device), device=device)
        self.finetuned = torch.zeros_like(self.base)
        self.rows = np.zeros(folds, dtype=np.int64)

    def add(self, chunk: LogitChunk) -> None:
        """Take in a chunk of positions."""
        folds = chunk.sample_indices % len(self.rows)
        for fold in folds.unique().tolist():
            rows = (folds == fold).nonzero().squeeze(1)
            begin, count = int(rows[0]), int(rows.numel())
            # The rows of a chunk come text by text, so a fold's rows are nearly always one slice.
            together = int(rows[-1]) - begin + 1 == count
            for expected, probs in ((self.base, chunk.base_probs), (self.finetuned, chunk.finetuned_probs)):
                part = probs[begin : begin + count] if together else probs[rows]
                expected[fold] += part.sum(dim=0)
            self.rows[fold] += count
