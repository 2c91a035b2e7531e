"""The one corpus pass: both models read the same batches, and every accumulator sees the pair of outputs while they are
on the device.

Cost. Everything beyond the two forward passes is streamed over `LogitChunk`s of a few rows (positions), small enough
for the CPU's cache. A chunk computes the float32 copies, the difference, one exponential and one log-sum-exp a side
once, whoever asks, in buffers that the next chunk uses again: an accumulator must copy what it keeps. Memory does not
depend on the number of tokens.

Two full models that do not fit together (`pair.sequential`) are read in blocks, see `diffing_mcp.preprocessing.spool`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffing_mcp.core.errors import NotTheSame
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.core.settings import settings
from diffing_mcp.core.undivided import working_time
from diffing_mcp.model_pairs.forward import ForwardOutput
from diffing_mcp.model_pairs.padding import padded
from diffing_mcp.model_pairs.room import check_logits, free_bytes, logit_tokens
from diffing_mcp.preprocessing.batches import Accumulator, LogitChunk, PairedBatch, Scratch, take_rows
from diffing_mcp.preprocessing.precision import model_dtype
from diffing_mcp.preprocessing.spool import Spool, split_blocks
from diffing_mcp.preprocessing.tokenize import TokenizedCorpus

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import Side

__all__ = [
    "Accumulator",
    "LogitChunk",
    "PairedBatch",
    "PassStatistics",
    "Scratch",
    "logit_batch_tokens",
    "plan_batches",
    "run_corpus_pass",
]

CHUNK_BYTES_CPU = 2 * 2**20
"""Bytes of one float32 [rows, vocabulary] buffer on a CPU: about ten rows of 49,152 tokens."""
CHUNK_BYTES_GPU = 256 * 2**20


_NOTHING = ForwardOutput(None)


def scratch_of(pair: LoadedPair) -> Scratch:
    """Buffers for chunks of a few positions, as many as the cache of the pair's device takes well."""
    device = torch.device(pair.device)
    chunk_bytes = CHUNK_BYTES_CPU if device.type == "cpu" else CHUNK_BYTES_GPU
    return Scratch(max(1, chunk_bytes // (4 * pair.vocab_size)), pair.vocab_size, device)


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


def run_corpus_pass(
    pair: LoadedPair, corpus: TokenizedCorpus, accumulators: Sequence[Accumulator], progress: Progress = silent
) -> PassStatistics:
    """Feed every accumulator once with the whole corpus.

    Batches hold samples of similar length (longest first, so that too little memory shows at once) and at most
    `settings().batch_tokens` tokens a side. `progress` counts tokens read by both sides together.

    Raises:
        Cancelled: from `progress`, which is called after each forward pass and each chunk of logits, so that a question
            need not wait for a whole batch.
        OutOfRoom: a sequential pair needs more disk than there is, or the logits of one batch more memory.
        NotTheSame: sides that are not declared identical predict exactly the same everywhere: every difference would be
            reported as zero.
    """
    started = working_time()
    layers = tuple(sorted({layer for accumulator in accumulators for layer in accumulator.layers}))
    readers = [accumulator for accumulator in accumulators if accumulator.needs_logits]
    statistics = PassStatistics(
        tokens=corpus.tokens, samples=len(corpus.ids), batches=0, read_tokens=0, seconds=0.0, forward_seconds=0.0
    )
    runner = _Runner(pair, corpus, layers, bool(readers), progress, statistics)
    differs = not readers or pair.spec.declared_identical
    with torch.inference_mode():
        for batch in runner.batches():
            differs = differs or batch.finetuned_extra_logits is not None
            if readers:
                for chunk in batch.logit_chunks():
                    differs = differs or not torch.equal(chunk.base_logits, chunk.finetuned_logits)
                    for reader in readers:
                        reader.update_logits(chunk)
                    runner.report()
            for accumulator in accumulators:
                accumulator.update(batch)
    if not differs:
        raise NotTheSame(
            f"The two sides predict exactly the same, to the last bit, at all {corpus.tokens} positions of this text, "
            "although their weights differ: the change does not reach it (it may act on tokens or positions that the "
            "text does not have, or lie below the resolution of the models' type). Give another text (`corpus`), or "
            "set DIFFING_DTYPE=float32."
        )
    statistics.seconds = working_time() - started
    return statistics


def logit_batch_tokens(pair: LoadedPair) -> int:
    """Tokens of a batch whose logits are read: `settings().batch_tokens`, or fewer where the vocabulary is large."""
    return logit_tokens(pair.vocab_size, model_dtype(pair).itemsize)


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices of samples in batches of similar length, longest first; a batch padded to its longest sample holds at
    most `batch_tokens` tokens (or one sample)."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


class _Runner:
    """The forward passes of one corpus pass."""

    def __init__(
        self,
        pair: LoadedPair,
        corpus: TokenizedCorpus,
        layers: tuple[int, ...],
        logits: bool,
        progress: Progress,
        statistics: PassStatistics,
    ) -> None:
        self.pair = pair
        self.corpus = corpus
        self.layers = layers
        self.logits = logits
        self.progress = progress
        self.statistics = statistics
        self.device = torch.device(pair.device)
        lengths = corpus.ids.lengths.tolist()
        self.plan = plan_batches(lengths, logit_batch_tokens(pair) if logits else settings().batch_tokens)
        if logits and self.plan:
            largest = max(len(batch) * lengths[batch[0]] for batch in self.plan)
            check_logits(largest, pair.vocab_size, model_dtype(pair).itemsize, free_bytes([self.device]))
        self.total = 2 * sum(len(batch) * lengths[batch[0]] for batch in self.plan)
        self.done = 0
        self.scratch = scratch_of(pair) if logits else None
        statistics.batches = len(self.plan)
        statistics.read_tokens = self.total // 2

    def batches(self) -> Iterator[PairedBatch]:
        self.report()
        if self.pair.sequential:
            yield from self._in_blocks()
            return
        for indices in self.plan:
            batch = self._inputs(indices)
            self._attach(batch, "base", self._forward("base", batch))
            self._attach(batch, "finetuned", self._forward("finetuned", batch))
            yield batch
            self._attach(batch, "base", _NOTHING)
            self._attach(batch, "finetuned", _NOTHING)

    def _in_blocks(self) -> Iterator[PairedBatch]:
        """One side of a block of batches goes to a temporary file, then the other side runs; every block starts with
        the side that is resident.
        """
        first, second = self.pair.resident_first()
        # Four bytes a value: enough for float32 models, and a reserve of two for the others.
        vocabulary = self.pair.vocab_size + len(self.pair.new_tokens)
        per_token = 4 * ((vocabulary if self.logits else 0) + len(self.layers) * self.pair.d_model)
        for block in split_blocks(self.plan, self.corpus.ids.lengths.tolist(), per_token):
            with Spool() as spool:
                batches = [self._inputs(indices) for indices in block]
                with self.pair.side_loaded(first):
                    for batch in batches:
                        output = self._forward(first, batch)
                        spool.put(output.hidden, None if output.logits is None else _compared_rows(output, batch))
                with self.pair.side_loaded(second):
                    for batch in batches:
                        output = self._forward(second, batch)
                        stored_hidden, rows = spool.take(self.device)
                        stored = None
                        if rows is not None:
                            stored = rows.new_zeros(*batch.input_ids.shape, rows.shape[-1])
                            stored.view(-1, rows.shape[-1])[batch.compared_rows] = rows
                        self._attach(batch, first, ForwardOutput(stored, stored_hidden).cut(self.pair.vocab_size))
                        self._attach(batch, second, output)
                        yield batch
                        self._attach(batch, first, _NOTHING)
                        self._attach(batch, second, _NOTHING)
                self.statistics.spooled_bytes += spool.written
            first, second = second, first

    @staticmethod
    def _attach(batch: PairedBatch, side: Side, output: ForwardOutput) -> None:
        if side == "base":
            batch.base_logits, batch.base_hidden = output.logits, dict(output.hidden)
        else:
            batch.finetuned_logits, batch.finetuned_hidden, batch.finetuned_extra_logits = (
                output.logits,
                dict(output.hidden),
                output.extra_logits,
            )

    def _inputs(self, indices: list[int]) -> PairedBatch:
        rows = [self.corpus.ids[index] for index in indices]
        ids, mask = padded(rows, getattr(self.pair.tokenizer, "pad_token_id", None))
        starts = torch.tensor([self.corpus.content_start[index] for index in indices])
        positions = torch.arange(ids.shape[1]) - starts.unsqueeze(1)
        positions = torch.where(mask.bool() & (positions >= 0), positions, -1)
        return PairedBatch(
            input_ids=ids.to(self.device),
            attention_mask=mask.to(self.device),
            positions=positions.to(self.device),
            sample_indices=torch.tensor(indices, device=self.device),
            scratch=self.scratch,
        )

    def _forward(self, side: Side, batch: PairedBatch) -> ForwardOutput:
        started = time.monotonic()
        output = self.pair.forward(side, batch.input_ids, batch.attention_mask, layers=self.layers, logits=self.logits)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.statistics.forward_seconds += time.monotonic() - started
        self.done += batch.input_ids.numel()
        self.report()
        return output

    def report(self) -> None:
        self.progress(self.done, self.total, "reading text")


def _compared_rows(output: ForwardOutput, batch: PairedBatch) -> Tensor:
    """Logits of the compared positions [N, V + E], those of ids beyond the common vocabulary last."""
    parts = [part for part in (output.logits, output.extra_logits) if part is not None]
    rows = [take_rows(part.view(-1, part.shape[-1]), batch.compared_rows) for part in parts]
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
