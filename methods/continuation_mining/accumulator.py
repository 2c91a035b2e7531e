"""How much the next-token distributions differ at every position read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from diffing_mcp.preprocessing.batches import Accumulator, LogitChunk

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus


class VariationAccumulator(Accumulator):
    """Total variation distance at each position: 0.5 * sum over tokens of |p_finetuned - p_base|, 0 to 1. Exactly 0
    where the logits agree.

    Measured on probabilities, so that the drift of logits which neither model's text depends on counts for nothing.
    """

    needs_logits = True

    def __init__(self, pair: LoadedPair, corpus: TokenizedCorpus) -> None:
        self.corpus = corpus
        lengths = [len(ids) - start for ids, start in zip(corpus.ids, corpus.content_start, strict=True)]
        self._offsets = torch.tensor([0, *lengths[:-1]], device=pair.device).cumsum(0)
        self.variation = torch.zeros(corpus.tokens, dtype=torch.float32, device=pair.device)
        self.samples = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        self.positions = torch.cat([torch.arange(length) for length in lengths])

    def update_logits(self, chunk: LogitChunk) -> None:
        """Take in a chunk of positions."""
        moved = torch.sub(chunk.finetuned_probs, chunk.base_probs, out=chunk.scratch("moved"))
        places = self._offsets[chunk.sample_indices] + chunk.positions
        self.variation[places] = 0.5 * torch.linalg.vector_norm(moved, ord=1, dim=1)
