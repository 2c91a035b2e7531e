"""What an accumulator sees of the corpus pass: batches of hidden states, and chunks of a few positions with both
models' logits in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor


class Accumulator:
    """What a method keeps of the pass; subclasses override what they need.

    The pass calls, in inference mode, for every batch: `update_logits(chunk)` for every chunk of the batch's compared
    positions, then `update(batch)`. All accumulators see one chunk before the next is made, so that they share its
    float32 values.
    """

    needs_logits: bool = False
    """Whether `update_logits` is to be called; without any such accumulator the forward stops at the last
    layer wanted.
    """

    layers: tuple[int, ...] = ()
    """Absolute layers whose residual stream (after the layer) `update` reads from `batch.base_hidden` and
    `batch.finetuned_hidden`.
    """

    def update(self, batch: PairedBatch) -> None:
        """Take in a batch's hidden states, after its logits. `batch.chunk(rows)` gives the logits of a few rows once
        more.
        """

    def update_logits(self, chunk: LogitChunk) -> None:
        """Take in the next-token logits of a few positions.
        Every compared position of the corpus comes exactly once.
        """


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
    """A few positions of a batch with both models' next-token logits in float32; every quantity is computed once, when
    first asked for.

    All [R, V] tensors live in buffers which the next chunk overwrites: read them, never change or keep them.

    Attributes:
        rows: [R] long, index of each position among the batch's B*S.
        sample_indices: [R] long, index of each row's sample in the corpus.
        positions: [R] long, position of the row (0 = first content token).
        token_ids: [R] long, token read at that position; the logits predict the token after it.
        next_ids: [R] long, token that follows in the sample, -1 at its end.
    """

    def __init__(
        self, batch: PairedBatch, rows: Tensor, scratch: Scratch, given: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """`given`: base and finetuned logits [R, V] of these rows, read off the models in another way than their last
        layer.
        """
        self._batch = batch
        self._scratch = scratch
        self._given = given
        self.rows = rows
        self.sample_indices = batch.row_samples[rows]
        self.positions = batch.flat_positions[rows]
        self.token_ids = batch.flat_ids[rows]
        self.next_ids = batch.flat_next_ids[rows]

    def __len__(self) -> int:
        return int(self.rows.numel())

    def _side(self, name: str, logits: Tensor | None, given: Tensor | None) -> Tensor:
        if given is not None:
            return given.float()
        if logits is None:
            raise RuntimeError("This pass computed no logits: an accumulator that reads them must set needs_logits.")
        buffer = self._scratch.take(name, len(self))
        return buffer.copy_(take_rows(logits.view(-1, logits.shape[-1]), self.rows))

    @cached_property
    def base_logits(self) -> Tensor:
        """[R, V] float32."""
        return self._side("base_logits", self._batch.base_logits, None if self._given is None else self._given[0])

    @cached_property
    def finetuned_logits(self) -> Tensor:
        """[R, V] float32."""
        return self._side(
            "finetuned_logits", self._batch.finetuned_logits, None if self._given is None else self._given[1]
        )

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
    def new_token_probs(self) -> Tensor | None:
        """[R, E] float32, the finetuned model's probability of each token id that the base model does not have, over
        all ids of the finetuned model; None when there are none. All other quantities are over the common vocabulary
        (renormalised there)."""
        extra = self._batch.finetuned_extra_logits
        if extra is None or self._given is not None:
            return None
        rows = take_rows(extra.reshape(-1, extra.shape[-1]), self.rows).float()
        return torch.exp(rows - torch.logaddexp(self.finetuned_log_normaliser, rows.logsumexp(1)).unsqueeze(1))

    @cached_property
    def log_ratio(self) -> Tensor:
        """[R, V] float32, log p_finetuned - log p_base, in nats."""
        shift = (self.finetuned_log_normaliser - self.base_log_normaliser).unsqueeze(1)
        return torch.sub(self.difference, shift, out=self._scratch.take("log_ratio", len(self)))

    @cached_property
    def base_log_probs(self) -> Tensor:
        """[R, V] float32 log-softmax of the base logits."""
        return torch.sub(
            self.base_logits, self.base_log_normaliser.unsqueeze(1), out=self._scratch.take("base_log_probs", len(self))
        )

    @cached_property
    def finetuned_log_probs(self) -> Tensor:
        """[R, V] float32 log-softmax of the finetuned logits."""
        return torch.sub(
            self.finetuned_logits,
            self.finetuned_log_normaliser.unsqueeze(1),
            out=self._scratch.take("finetuned_log_probs", len(self)),
        )

    def scratch(self, name: str) -> Tensor:
        """An uninitialised [R, V] float32 buffer for an accumulator's own intermediate values, shared by all chunks."""
        return self._scratch.take(f"own:{name}", len(self))


def take_rows(values: Tensor, rows: Tensor) -> Tensor:
    """`values[rows]`, without a copy when the rows follow one another."""
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == rows.numel():
        return values[first : last + 1]
    return values.index_select(0, rows)


def _softmax(logits: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities in `out` [R, V] and log-sum-exp [R], in one fused pass: the largest probability is exp(largest
    logit - log-sum-exp).
    """
    torch.softmax(logits, dim=1, out=out)
    return out, logits.amax(dim=1) - out.amax(dim=1).log()


@dataclass
class PairedBatch:
    """One batch as both models saw it. B samples, padded on the right to S tokens.

    Attributes:
        input_ids, attention_mask: [B, S] long.
        positions: [B, S] long; 0 = first content token, -1 = BOS, prompt context or padding (not compared).
        sample_indices: [B] long, index of each sample in the corpus.
        base_hidden, finetuned_hidden: absolute layer -> [B, S, d_model] in model dtype, residual stream after the
            layer.
        base_logits, finetuned_logits: [B, S, V] in model dtype, or None when no accumulator needs logits. Read them in
            `update_logits`.
        finetuned_extra_logits: [B, S, E] of token ids that the base model does not have, or None.
    """

    input_ids: Tensor
    attention_mask: Tensor
    positions: Tensor
    sample_indices: Tensor
    base_hidden: dict[int, Tensor] = field(default_factory=dict)
    finetuned_hidden: dict[int, Tensor] = field(default_factory=dict)
    base_logits: Tensor | None = None
    finetuned_logits: Tensor | None = None
    finetuned_extra_logits: Tensor | None = None
    scratch: Scratch | None = None

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

    @cached_property
    def compared_rows(self) -> Tensor:
        """[N] long, ascending indices (among B*S) of the compared positions."""
        return (self.flat_positions >= 0).nonzero().squeeze(1)

    def chunk(self, rows: Tensor) -> LogitChunk:
        """The logits of `rows` (ascending indices among B*S, at most `chunk_rows` of them). Overwrites the previous
        chunk's buffers.
        """
        return LogitChunk(self, rows, self._scratch_or_raise())

    @property
    def chunk_rows(self) -> int:
        """Rows in a chunk at most."""
        return self._scratch_or_raise().rows

    def _scratch_or_raise(self) -> Scratch:
        if self.scratch is None:
            raise RuntimeError("This pass computed no logits: an accumulator that reads them must set needs_logits.")
        return self.scratch

    def logit_chunks(self) -> Iterator[LogitChunk]:
        """Chunks of the compared positions. The pass iterates them; accumulators get them through `update_logits`."""
        for rows in self.compared_rows.split(self.chunk_rows):
            yield self.chunk(rows)


def text_chunks(base_logits: Tensor, finetuned_logits: Tensor, rows: int = 64) -> Iterator[LogitChunk]:
    """Chunks of at most `rows` positions of one text, as a pass would give them, from both models' logits [T, V]. Its
    tokens are not known to them.
    """
    ids = torch.zeros(1, len(base_logits), dtype=torch.long, device=base_logits.device)
    return PairedBatch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        positions=torch.arange(len(base_logits), device=ids.device).unsqueeze(0),
        sample_indices=ids[:, 0],
        base_logits=base_logits.unsqueeze(0),
        finetuned_logits=finetuned_logits.unsqueeze(0),
        scratch=Scratch(rows, base_logits.shape[-1], ids.device),
    ).logit_chunks()
