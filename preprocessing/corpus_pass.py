"""The one corpus pass: both models read the same batches, and every accumulator sees the pair of outputs while they are on the device.

Cost. Everything beyond the two forward passes is streamed over `LogitChunk`s of a few rows (positions), small enough for the CPU's cache. A chunk
computes the float32 copies, the difference, one exponential and one log-sum-exp a side once, whoever asks, in buffers that the next chunk uses
again: an accumulator must copy what it keeps. Memory does not depend on the number of tokens.

Two full models that do not fit together (`pair.sequential`) are read in blocks, see `preprocessing.spool`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from organisms.progress import Progress, silent
from preprocessing.tokenize import TokenizedCorpus

if TYPE_CHECKING:
    from model_pairs.pair import LoadedPair

CHUNK_BYTES_CPU = 2 * 2**20
"""Bytes of one float32 [rows, vocabulary] buffer on a CPU: about ten rows of 49,152 tokens."""
CHUNK_BYTES_GPU = 256 * 2**20
LOGIT_BYTES = 512 * 2**20
"""Bytes of one side's logits in a batch at most; a large vocabulary gets smaller batches than `settings().batch_tokens`."""


class Accumulator:
    """What a method keeps of the pass; subclasses override what they need.

    The pass calls, in inference mode, for every batch: `update(batch)`, then `update_logits(chunk)` for every chunk of the batch's compared
    positions. All accumulators see one chunk before the next is made, so that they share its float32 values.
    """

    needs_logits: bool = False
    """Whether `update_logits` is to be called; without any such accumulator the forward stops at the last layer wanted."""

    layers: tuple[int, ...] = ()
    """Absolute layers whose residual stream (after the layer) `update` reads from `batch.base_hidden` and `batch.finetuned_hidden`."""

    def update(self, batch: PairedBatch) -> None:
        """Take in a batch's hidden states. Must not touch logits."""

    def update_logits(self, chunk: LogitChunk) -> None:
        """Take in the next-token logits of a few positions. Every compared position of the corpus comes exactly once."""


class Scratch:
    """Float32 buffers [rows, vocabulary] that all chunks of a pass share."""

    def __init__(self, rows: int, vocabulary: int, device: torch.device) -> None:
        self.rows = rows
        self._vocabulary = vocabulary
        self._device = device
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, rows: int) -> Tensor:
        """The buffer of that name cut to `rows`; its old content is void."""
        if name not in self._buffers:
            self._buffers[name] = torch.empty(self.rows, self._vocabulary, dtype=torch.float32, device=self._device)
        return self._buffers[name][:rows]


class LogitChunk:
    """A few positions of a batch with both models' next-token logits in float32; every quantity is computed once, when first asked for.

    All [R, V] tensors live in buffers which the next chunk overwrites: read them, never change or keep them.

    Attributes:
        sample_indices: [R] long, index of each row's sample in the corpus.
        positions: [R] long, position of the row (0 = first content token).
        token_ids: [R] long, token read at that position; the logits predict the token after it.
        next_ids: [R] long, token that follows in the sample, -1 at its end.
    """

    def __init__(self, batch: PairedBatch, rows: Tensor, scratch: Scratch) -> None:
        self._batch = batch
        self._rows = rows
        self._scratch = scratch
        self.sample_indices = batch.row_samples[rows]
        self.positions = batch.flat_positions[rows]
        self.token_ids = batch.flat_ids[rows]
        self.next_ids = batch.flat_next_ids[rows]

    def __len__(self) -> int:
        return int(self._rows.numel())

    def _side(self, name: str, logits: Tensor | None) -> Tensor:
        assert logits is not None  # the pass computed logits because an accumulator needs them
        buffer = self._scratch.take(name, len(self))
        buffer.copy_(logits.view(-1, logits.shape[-1])[self._rows])
        return buffer

    @cached_property
    def base_logits(self) -> Tensor:
        """[R, V] float32."""
        return self._side("base_logits", self._batch.base_logits)

    @cached_property
    def finetuned_logits(self) -> Tensor:
        """[R, V] float32."""
        return self._side("finetuned_logits", self._batch.finetuned_logits)

    @cached_property
    def difference(self) -> Tensor:
        """[R, V] float32, finetuned minus base logits. Exactly 0.0 where the logits agree."""
        return torch.sub(self.finetuned_logits, self.base_logits, out=self._scratch.take("difference", len(self)))

    @cached_property
    def _base_softmax(self) -> tuple[Tensor, Tensor]:
        return _softmax(self.base_logits, self._scratch.take("base_probs", len(self)))

    @cached_property
    def _finetuned_softmax(self) -> tuple[Tensor, Tensor]:
        return _softmax(self.finetuned_logits, self._scratch.take("finetuned_probs", len(self)))

    @property
    def base_probs(self) -> Tensor:
        """[R, V] float32, softmax of the base logits."""
        return self._base_softmax[0]

    @property
    def finetuned_probs(self) -> Tensor:
        """[R, V] float32, softmax of the finetuned logits."""
        return self._finetuned_softmax[0]

    @property
    def base_log_normaliser(self) -> Tensor:
        """[R] float32, log-sum-exp of the base logits: log-probabilities are logits minus this."""
        return self._base_softmax[1]

    @property
    def finetuned_log_normaliser(self) -> Tensor:
        """[R] float32, log-sum-exp of the finetuned logits."""
        return self._finetuned_softmax[1]

    @cached_property
    def log_ratio(self) -> Tensor:
        """[R, V] float32, log p_finetuned - log p_base, in nats."""
        shift = (self.finetuned_log_normaliser - self.base_log_normaliser).unsqueeze(1)
        return torch.sub(self.difference, shift, out=self._scratch.take("log_ratio", len(self)))

    @cached_property
    def base_log_probs(self) -> Tensor:
        """[R, V] float32 log-softmax of the base logits."""
        return torch.sub(self.base_logits, self.base_log_normaliser.unsqueeze(1), out=self._scratch.take("base_log_probs", len(self)))

    @cached_property
    def finetuned_log_probs(self) -> Tensor:
        """[R, V] float32 log-softmax of the finetuned logits."""
        return torch.sub(self.finetuned_logits, self.finetuned_log_normaliser.unsqueeze(1), out=self._scratch.take("finetuned_log_probs", len(self)))

    def scratch(self, name: str) -> Tensor:
        """An uninitialised [R, V] float32 buffer for an accumulator's own intermediate values, shared by all chunks."""
        return self._scratch.take(f"own:{name}", len(self))


def _softmax(logits: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities in `out` [R, V] and log-sum-exp [R] with one exponential a value."""
    highest = logits.amax(dim=1, keepdim=True)
    torch.sub(logits, highest, out=out).exp_()
    total = out.sum(dim=1, keepdim=True)
    out.div_(total)
    return out, (highest + total.log()).squeeze(1)


@dataclass
class PairedBatch:
    """One batch as both models saw it. B samples, padded on the right to S tokens.

    Attributes:
        input_ids, attention_mask: [B, S] long.
        positions: [B, S] long; 0 = first content token, -1 = BOS, prompt context or padding (not compared).
        sample_indices: [B] long, index of each sample in the corpus.
        base_hidden, finetuned_hidden: absolute layer -> [B, S, d_model] in model dtype, residual stream after the layer.
        base_logits, finetuned_logits: [B, S, V] in model dtype, or None when no accumulator needs logits. Read them in `update_logits`.
    """

    input_ids: Tensor
    attention_mask: Tensor
    positions: Tensor
    sample_indices: Tensor
    base_hidden: dict[int, Tensor] = field(default_factory=dict)
    finetuned_hidden: dict[int, Tensor] = field(default_factory=dict)
    base_logits: Tensor | None = None
    finetuned_logits: Tensor | None = None

    @cached_property
    def flat_positions(self) -> Tensor:
        """[B*S] positions."""
        return self.positions.reshape(-1)

    @cached_property
    def flat_ids(self) -> Tensor:
        """[B*S] token ids."""
        return self.input_ids.reshape(-1)

    @cached_property
    def flat_next_ids(self) -> Tensor:
        """[B*S] following token ids, -1 where the sample ends."""
        following = torch.full_like(self.input_ids, -1)
        following[:, :-1] = torch.where(self.attention_mask[:, 1:] > 0, self.input_ids[:, 1:], -1)
        return following.reshape(-1)

    @cached_property
    def row_samples(self) -> Tensor:
        """[B*S] sample index of every position."""
        return self.sample_indices.unsqueeze(1).expand_as(self.input_ids).reshape(-1)

    def logit_chunks(self, scratch: Scratch) -> Iterator[LogitChunk]:
        """Chunks of the compared positions, `scratch.rows` rows each. The pass iterates them; accumulators get them through `update_logits`."""
        valid = (self.flat_positions >= 0).nonzero().squeeze(1)
        for rows in valid.split(scratch.rows):
            yield LogitChunk(self, rows, scratch)


@dataclass
class PassStatistics:
    """What a pass cost."""

    tokens: int
    """Positions compared."""
    samples: int
    batches: int
    read_tokens: int
    """Tokens each model read, with prompts and padding."""
    seconds: float
    forward_seconds: float
    """Of these, seconds inside the models' forward passes."""
    spooled_bytes: int = 0
    """Bytes written to a temporary file because the two models do not fit together."""


def run_corpus_pass(pair: LoadedPair, corpus: TokenizedCorpus, accumulators: Sequence[Accumulator], progress: Progress = silent) -> PassStatistics:
    """Feed every accumulator once with the whole corpus.

    Batches hold samples of similar length (longest first, so that too little memory shows at once) and at most `settings().batch_tokens`
    tokens a side. `progress` counts tokens read by both sides together.

    Raises:
        Cancelled: from `progress`, between batches.
        OutOfRoom: a sequential pair needs more disk than there is.
    """
    raise NotImplementedError
