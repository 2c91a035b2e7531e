"""Streaming statistics over the whole vocabulary of what finetuning did to next-token logits: final ones, or logits
read off a middle layer.

Memory is O(vocabulary) plus O(kept positions x top K) whatever the number of tokens; sums within a chunk are float32,
everything beyond is float64 or integer.

Off a middle layer: `logit_lens`, each side's own final norm and unembedding read its residual stream after the layer;
`patchscope`, the residual stream of one position replaces that of the last token of a prompt that repeats words, at the
same layer of the same model, and what the model would say next is read (Ghandeharioun et al. 2024, "Patchscopes"; the
identity prompt with three examples).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from diffing_mcp.core.devices import wide_dtype
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.directions.patchscope import IDENTITY_PROMPTS
from diffing_mcp.model_pairs.interventions import Intervention
from diffing_mcp.preprocessing.batches import Accumulator, LogitChunk, PairedBatch
from diffing_mcp.preprocessing.corpus_pass import scratch_of
from diffing_mcp.preprocessing.expected_tokens import ExpectedTokens
from diffing_mcp.preprocessing.positions import CorpusPositions
from diffing_mcp.preprocessing.topk import exact_topk

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import Side
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus


FOLDS = 10
"""Samples are dealt to this many groups by index; a statistic's error is estimated from leaving out one group at a
time.
"""
_SINGLE_POSITIONS = 5


def position_bins(length: int) -> np.ndarray:
    """First positions of the bins of the positional profile [B]: 0 to 4 one by one, then 5, 10, 20, 40, ... below
    `length`.
    """
    starts = list(range(min(_SINGLE_POSITIONS, length)))
    start = _SINGLE_POSITIONS
    while start < length:
        starts.append(start)
        start *= 2
    return np.array(starts, dtype=np.int64)


@dataclass(frozen=True)
class KeptPositions:
    """The largest positive differences at some of the positions read: what topics are made of. N positions.

    Attributes:
        samples, positions: [N] int64, where each is in the corpus.
        indices: [N, K] int32 token ids; values: [N, K] float32 logit differences, 0 where fewer than K logits rose.
    """

    samples: np.ndarray
    positions: np.ndarray
    indices: np.ndarray
    values: np.ndarray


class LogitDifferenceAccumulator(Accumulator):
    """Counts per token v over all compared positions, with D = finetuned minus base logits (float32):

    occurrences of v among the K largest D (`risen`, only where D > 0) and among the K smallest (`fallen`, only where D
    < 0), positions with D_v > 0, the sum of D_v, and the expected occurrences of v under each model (sums of
    probabilities) by fold of samples. By bin of positions: the occurrences among the risen, and the mean of |D| over
    the vocabulary. The K largest D of `keep` positions drawn by `seed` are kept.

    With `merge_index` [V] (token -> word), an occurrence counts once a position for a word, whichever of its variants
    are in the top K.
    """

    needs_logits = True

    def __init__(
        self,
        vocab_size: int,
        top_k: int,
        merge_index: np.ndarray | None,
        device: torch.device | str,
        corpus: TokenizedCorpus,
        keep: int = 0,
        seed: int = 0,
    ) -> None:
        self.corpus = corpus
        self.top_k = min(top_k, vocab_size)
        self.device = torch.device(device)
        wide = wide_dtype(self.device)
        self.merge_index = None if merge_index is None else torch.as_tensor(merge_index, device=self.device)
        self.slots = vocab_size if self.merge_index is None else int(self.merge_index.max()) + 1
        self.positions = CorpusPositions(corpus, self.device)
        self.bins = position_bins(int(self.positions.lengths.max()))
        self.rows = 0
        self.expected = ExpectedTokens(FOLDS, vocab_size, self.device)
        self.risen_by_bin = torch.zeros(len(self.bins), self.slots, dtype=torch.int64, device=self.device)
        self.rows_by_bin = torch.zeros(len(self.bins), dtype=torch.int64, device=self.device)
        self.size_by_bin = torch.zeros(len(self.bins), dtype=wide, device=self.device)
        self.fallen = torch.zeros(self.slots, dtype=torch.int64, device=self.device)
        self.positive = torch.zeros(vocab_size, dtype=wide, device=self.device)
        self.sum = torch.zeros(vocab_size, dtype=wide, device=self.device)
        self.expected_new: Tensor | None = None
        """[E] expected occurrences of token ids that the base model does not have; None when there are none."""
        self._starts = torch.as_tensor(self.bins, device=self.device)
        self._wanted = chosen_positions(len(self.positions), keep, seed, self.device)
        self._kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    @property
    def risen(self) -> Tensor:
        """[slots] occurrences among the K largest positive differences."""
        return self.risen_by_bin.sum(dim=0)

    def update_logits(self, chunk: LogitChunk) -> None:
        """Take in a chunk of positions."""
        difference = chunk.difference
        self.rows += len(chunk)
        bins = torch.searchsorted(self._starts, chunk.positions, right=True) - 1
        values, indices = exact_topk(difference, self.top_k, largest=True)
        self._count(self.risen_by_bin, indices, values > 0, bins)
        self._keep(chunk, values, indices)
        values, indices = exact_topk(difference, self.top_k, largest=False)
        self._count(self.fallen, indices, values < 0, torch.zeros_like(bins))
        self.rows_by_bin.index_add_(0, bins, torch.ones_like(bins))
        sizes = torch.linalg.vector_norm(difference, ord=1, dim=1).to(self.size_by_bin.dtype) / difference.shape[1]
        self.size_by_bin.index_add_(0, bins, sizes)
        self.positive += torch.gt(difference, 0, out=chunk.scratch("positive")).sum(dim=0)
        self.sum += difference.sum(dim=0)
        if (new := chunk.new_token_probs) is not None:
            total = new.sum(dim=0).to(self.sum.dtype)
            self.expected_new = total if self.expected_new is None else self.expected_new + total
        self.expected.add(chunk)

    def _count(self, counts: Tensor, indices: Tensor, kept: Tensor, bins: Tensor) -> None:
        """Count each row's tokens (or words) in the row of `counts` [B, slots] that its bin names."""
        offsets = (bins * self.slots).unsqueeze(1)
        if self.merge_index is None:
            chosen = (indices + offsets)[kept]
        else:
            words = torch.where(kept, self.merge_index[indices], -1).sort(dim=1).values
            first = torch.ones_like(words, dtype=torch.bool)
            first[:, 1:] = words[:, 1:] != words[:, :-1]
            chosen = (words + offsets)[first & (words >= 0)]
        counts.view(-1).index_add_(0, chosen, torch.ones_like(chosen))

    def _keep(self, chunk: LogitChunk, values: Tensor, indices: Tensor) -> None:
        if self._wanted is None:
            return
        rows = self._wanted[self.positions.indices(chunk.sample_indices, chunk.positions)].nonzero().squeeze(1)
        if rows.numel():
            places = chunk.sample_indices[rows], chunk.positions[rows]
            self._kept.append(
                (places[0].cpu(), places[1].cpu(), indices[rows].int().cpu(), values[rows].clamp_min(0).cpu())
            )

    def kept(self) -> KeptPositions:
        """The kept positions, in the order of the text."""
        if not self._kept:
            nothing = np.zeros((0, self.top_k), dtype=np.int32)
            return KeptPositions(np.zeros(0, np.int64), np.zeros(0, np.int64), nothing, nothing.astype(np.float32))
        samples, positions, indices, values = (torch.cat(parts).numpy() for parts in zip(*self._kept, strict=True))
        order = np.lexsort((positions, samples))
        return KeptPositions(samples[order], positions[order], indices[order], values[order])


def chosen_positions(total: int, keep: int, seed: int, device: torch.device | str) -> Tensor | None:
    """[total] bool with `keep` positions drawn without replacement (all when there are fewer); None to keep none."""
    if keep <= 0:
        return None
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[np.random.default_rng(seed).permutation(total)[:keep]] = True
    return chosen.to(device)


IDENTITY_PROMPT = IDENTITY_PROMPTS[0]
"""The last token's state is replaced; the examples before it set the task: say the word again."""
_MOST_PROMPTS = 256
"""Patched prompts at once: each holds keys and values of the whole prompt."""
_BLOCK_BYTES = 128 * 2**20
"""Bytes of one side's float32 logits at once."""


class ExtractedAccumulator(Accumulator):
    """Feeds `statistics` with logits made from the hidden states after `layer`.

    Args:
        chosen: [tokens] bool over the corpus's positions in the order of the text: those to read; None: all.

    Raises:
        InvalidInput: the pair's two models do not fit into memory together, so that every batch would load each of
            them.
    """

    def __init__(
        self,
        pair: LoadedPair,
        statistics: LogitDifferenceAccumulator,
        layer: int,
        extraction: Literal["logit_lens", "patchscope"],
        chosen: Tensor | None,
    ) -> None:
        if pair.sequential:
            raise InvalidInput(
                f"extraction={extraction} reads both models in turn at every batch, and the two do not fit into memory "
                "together. Use extraction=logits."
            )
        self.pair = pair
        self.statistics = statistics
        self.layers = (layer,)
        self.extraction = extraction
        self.scratch = scratch_of(pair)
        self._chosen = chosen
        self._prompt: list[int] = pair.tokenizer(IDENTITY_PROMPT)["input_ids"]
        self._block = max(1, _BLOCK_BYTES // (4 * pair.vocab_size))
        if extraction == "patchscope":
            self._block = min(self._block, _MOST_PROMPTS)

    def update(self, batch: PairedBatch) -> None:
        """Read the batch's positions, a block at a time."""
        rows = batch.compared_rows
        if self._chosen is not None:
            indices = self.statistics.positions.indices(batch.row_samples[rows], batch.flat_positions[rows])
            rows = rows[self._chosen[indices]]
        layer = self.layers[0]
        for block in rows.split(self._block):
            if not block.numel():
                continue
            base = self._read("base", batch.base_hidden[layer], block)
            finetuned = self._read("finetuned", batch.finetuned_hidden[layer], block)
            parts = (part.split(self.scratch.rows) for part in (block, base, finetuned))
            for few, base_part, finetuned_part in zip(*parts, strict=True):
                self.statistics.update_logits(LogitChunk(batch, few, self.scratch, (base_part, finetuned_part)))

    def _read(self, side: Side, hidden: Tensor, rows: Tensor) -> Tensor:
        """[R, V] float32 logits of the positions `rows` of hidden states [B, S, d_model]."""
        states = hidden.reshape(-1, hidden.shape[-1])[rows]
        if self.extraction == "logit_lens":
            return self.pair.logit_lens(side, states)
        return self.pair.last_token_logits(
            side, self._prompt, len(rows), [Intervention(self.layers[0], states, mode="replace")]
        )
