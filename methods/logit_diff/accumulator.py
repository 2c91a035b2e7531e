"""Streaming statistics over the whole vocabulary of what finetuning did to next-token logits.

Memory is O(vocabulary) whatever the number of tokens; sums within a chunk are float32, everything beyond is float64 or integer.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from preprocessing.batches import Accumulator, LogitChunk
from preprocessing.topk import exact_topk

FOLDS = 10
"""Samples are dealt to this many groups by index; a statistic's error is estimated from leaving out one group at a time."""


class LogitDifferenceAccumulator(Accumulator):
    """Counts per token v over all compared positions, with D = finetuned minus base logits (float32):

    occurrences of v among the K largest D (`risen`, only where D > 0) and among the K smallest (`fallen`, only where D < 0), positions with
    D_v > 0, the sum of D_v, and the expected occurrences of v under each model (sums of probabilities) by fold of samples.

    With `merge_index` [V] (token -> word), an occurrence counts once a position for a word, whichever of its variants are in the top K.
    """

    needs_logits = True

    def __init__(
        self, vocab_size: int, top_k: int, merge_index: np.ndarray | None, device: torch.device | str, samples: int = 0, position_zero: str = ""
    ) -> None:
        self.samples = samples
        self.position_zero = position_zero
        self.top_k = min(top_k, vocab_size)
        self.device = torch.device(device)
        wide = torch.float32 if self.device.type == "mps" else torch.float64
        self.merge_index = None if merge_index is None else torch.as_tensor(merge_index, device=self.device)
        slots = vocab_size if self.merge_index is None else int(self.merge_index.max()) + 1
        self.rows = 0
        self.rows_by_fold = np.zeros(FOLDS, dtype=np.int64)
        self.risen = torch.zeros(slots, dtype=torch.int64, device=self.device)
        self.fallen = torch.zeros(slots, dtype=torch.int64, device=self.device)
        self.positive = torch.zeros(vocab_size, dtype=wide, device=self.device)
        self.sum = torch.zeros(vocab_size, dtype=wide, device=self.device)
        self.expected_base = torch.zeros(FOLDS, vocab_size, dtype=wide, device=self.device)
        self.expected_finetuned = torch.zeros(FOLDS, vocab_size, dtype=wide, device=self.device)

    def update_logits(self, chunk: LogitChunk) -> None:
        """Take in a chunk of positions."""
        difference = chunk.difference
        self.rows += len(chunk)
        values, indices = exact_topk(difference, self.top_k, largest=True)
        self._count(self.risen, indices, values > 0)
        values, indices = exact_topk(difference, self.top_k, largest=False)
        self._count(self.fallen, indices, values < 0)
        self.positive += torch.gt(difference, 0, out=chunk.scratch("positive")).sum(dim=0)
        self.sum += difference.sum(dim=0)
        folds = chunk.sample_indices % FOLDS
        for fold in folds.unique().tolist():
            rows = (folds == fold).nonzero().squeeze(1)
            begin, count = int(rows[0]), int(rows.numel())
            # The rows of a chunk come sample by sample, so a fold's rows are nearly always one slice.
            together = int(rows[-1]) - begin + 1 == count
            for expected, probs in ((self.expected_base, chunk.base_probs), (self.expected_finetuned, chunk.finetuned_probs)):
                part = probs[begin : begin + count] if together else probs[rows]
                expected[fold] += part.sum(dim=0)
            self.rows_by_fold[fold] += count

    def _count(self, counts: Tensor, indices: Tensor, kept: Tensor) -> None:
        if self.merge_index is None:
            chosen = indices[kept]
        else:
            words = torch.where(kept, self.merge_index[indices], -1).sort(dim=1).values
            first = torch.ones_like(words, dtype=torch.bool)
            first[:, 1:] = words[:, 1:] != words[:, :-1]
            chosen = words[first & (words >= 0)]
        counts.index_add_(0, chosen, torch.ones_like(chosen))
