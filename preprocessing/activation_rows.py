"""Rows of activations: what fills them during a corpus pass, and the one reader of them, whether they lie in memory or
in files.

A row is one kept token. Rows follow the order of the text: sample after sample, token after token, whatever batches the
pass made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.preprocessing.activations import ActivationBlock
from diffing_mcp.preprocessing.batches import Accumulator, PairedBatch
from diffing_mcp.preprocessing.tokenize import TokenizedCorpus

POOL_BYTES = 256 * 2**20
"""Bytes of both sides that are mixed at once when reading in random order."""
STRETCHES = 16
"""Contiguous stretches in such a pool."""
STATISTICS = ("base", "finetuned", "difference")


@dataclass
class Moments:
    """Count, mean [d_model] and sum of squared deviations [d_model] in float64, merged by the formula of Chan, Golub
    and LeVeque (1979).
    """

    count: int
    mean: Tensor
    squares: Tensor

    @staticmethod
    def of(rows: Tensor) -> Moments:
        """Moments of rows [N, d_model]."""
        values = rows.double()
        mean = values.mean(0) if len(values) else values.new_zeros(values.shape[1])
        return Moments(len(values), mean, (values - mean).square().sum(0))

    def merged(self, other: Moments) -> Moments:
        """Moments of the rows of both."""
        count = self.count + other.count
        if count == 0:
            return self
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        return Moments(count, mean, self.squares + other.squares + shift.square() * (self.count * other.count / count))

    @property
    def std(self) -> Tensor:
        """[d_model] float64 standard deviation (divided by the count)."""
        return (self.squares / max(1, self.count)).sqrt()


@dataclass(frozen=True)
class KeptText:
    """The tokens whose activations are kept.

    Attributes:
        corpus: the samples that have such tokens, cut after the last of them.
        skip_first: compared tokens dropped at the start of every sample.
        starts: [S + 1] int64, first row of each sample, and the number of rows.
        token_ids: [N] int32, the token of each row.
    """

    corpus: TokenizedCorpus
    skip_first: int
    starts: Tensor
    token_ids: Tensor

    @property
    def num_tokens(self) -> int:
        """Rows."""
        return int(self.starts[-1])

    def part(self, first: int, last: int) -> KeptText:
        """The samples [first, last), with rows counted from 0."""
        rows = slice(int(self.starts[first]), int(self.starts[last]))
        corpus = replace(
            self.corpus,
            ids=self.corpus.ids.part(first, last),
            content_start=self.corpus.content_start[first:last],
            assistant_start=self.corpus.assistant_start[first:last],
        )
        return KeptText(corpus, self.skip_first, self.starts[first : last + 1] - rows.start, self.token_ids[rows])


def kept_text(corpus: TokenizedCorpus, skip_first: int, limit: int | None = None) -> KeptText:
    """Drop the first `skip_first` compared tokens of every sample, and everything after `limit` kept tokens in all.

    Raises:
        InvalidInput: nothing is left.
    """
    chosen: list[int] = []
    cuts: dict[int, int] = {}
    starts = [0]
    for index, (length, start) in enumerate(zip(corpus.ids.lengths.tolist(), corpus.content_start, strict=True)):
        kept = length - start - skip_first
        if kept <= 0:
            continue
        if limit is not None and starts[-1] + kept > limit:
            kept = limit - starts[-1]
            if kept == 0:
                break
            cuts[index] = start + skip_first + kept
        chosen.append(index)
        starts.append(starts[-1] + kept)
    if not chosen:
        raise InvalidInput(
            f"No token is left after dropping the first {skip_first} of each document; lower skip_first or raise "
            "max_tokens."
        )
    if cuts or len(chosen) < len(corpus.ids):
        corpus = replace(
            corpus,
            ids=corpus.ids.chosen(chosen, cuts),
            content_start=[corpus.content_start[index] for index in chosen],
            assistant_start=[corpus.assistant_start[index] for index in chosen],
        )
    firsts = zip(corpus.ids.starts.tolist(), corpus.ids.starts[1:].tolist(), corpus.content_start, strict=False)
    kept_ids = np.concatenate([corpus.ids.flat[first + start + skip_first : last] for first, last, start in firsts])
    return KeptText(corpus, skip_first, torch.tensor(starts), torch.from_numpy(kept_ids))


class RowSink(Protocol):
    """Where collected rows go."""

    def put(self, layer: int, base: Tensor, finetuned: Tensor, rows: Tensor) -> None:
        """Rows [N, d_model] of both sides in the stored dtype, on the CPU, and their indices [N], ascending within each
        sample.
        """


class RowSource(Protocol):
    """Where rows of one layer are read from."""

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Base and finetuned rows [start, stop) in the stored dtype."""


class RowCollector(Accumulator):
    """Hands the kept rows of a corpus pass over `text.corpus` to a sink, and keeps their moments by (layer, name in
    STATISTICS).
    """

    def __init__(self, text: KeptText, layers: Sequence[int], dtype: torch.dtype, sink: RowSink) -> None:
        self.layers = tuple(layers)
        self.moments: dict[tuple[int, str], Moments] = {}
        self._text = text
        self._dtype = dtype
        self._sink = sink

    def update(self, batch: PairedBatch) -> None:
        kept = (batch.flat_positions >= self._text.skip_first).nonzero().squeeze(1)
        if not len(kept):
            return
        samples, offsets = batch.row_samples[kept].cpu(), batch.flat_positions[kept].cpu() - self._text.skip_first
        rows = self._text.starts[samples] + offsets
        for layer in self.layers:
            base, finetuned = (
                hidden[layer].reshape(-1, hidden[layer].shape[-1])[kept].to(self._dtype).cpu()
                for hidden in (batch.base_hidden, batch.finetuned_hidden)
            )
            if not (base.isfinite().all() and finetuned.isfinite().all()):
                raise InvalidInput(
                    f"Activations after layer {layer} do not fit into {str(self._dtype).removeprefix('torch.')} (or "
                    "are not finite); use dtype=float32."
                )
            for name, values in zip(STATISTICS, (base, finetuned, finetuned.float() - base.float()), strict=True):
                found = Moments.of(values)
                known = self.moments.get((layer, name))
                self.moments[layer, name] = known.merged(found) if known else found
            self._sink.put(layer, base, finetuned, rows)


class MemoryRows:
    """A sink that is also the source of every layer: tensors [N, d_model] a side."""

    def __init__(self, num_tokens: int, d_model: int, layers: Sequence[int], dtype: torch.dtype) -> None:
        self._sides = {
            layer: tuple(torch.empty(num_tokens, d_model, dtype=dtype) for _ in range(2)) for layer in layers
        }

    def put(self, layer: int, base: Tensor, finetuned: Tensor, rows: Tensor) -> None:
        """See `RowSink`."""
        for side, values in zip(self._sides[layer], (base, finetuned), strict=True):
            side[rows] = values

    def source(self, layer: int) -> RowSource:
        """The rows of one layer."""
        return _MemorySource(*self._sides[layer])


@dataclass(frozen=True)
class _MemorySource:
    base: Tensor
    finetuned: Tensor

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return self.base[start:stop], self.finetuned[start:stop]


@dataclass(frozen=True)
class ActivationRows:
    """The reader: `diffing_mcp.preprocessing.activations.PairedActivations` over any source.

    Attributes:
        starts: [S + 1] int64, first row of each sample; the last sample may go on beyond `num_tokens`.
        token_ids: [N] int32.
        first_position: position (0 = first content token) of every sample's first row.
        pool_rows: rows mixed at once in random order.
    """

    layer: int
    d_model: int
    num_tokens: int
    content_hash: str
    starts: Tensor
    token_ids: Tensor
    first_position: int
    source: RowSource
    pool_rows: int

    @property
    def num_samples(self) -> int:
        """Samples that have rows."""
        return int(torch.searchsorted(self.starts, self.num_tokens))

    def blocks(
        self, rows: int, seed: int | None = None, start: int = 0, stop: int | None = None
    ) -> Iterator[ActivationBlock]:
        """See `PairedActivations.blocks`."""
        stop = self.num_tokens if stop is None else min(stop, self.num_tokens)
        if rows < 1 or not 0 <= start <= stop:
            raise InvalidInput(
                f"Blocks have at least one row and lie within [0, {self.num_tokens}], not {rows} rows of [{start}, "
                f"{stop})."
            )
        if start == stop:
            return
        if seed is None:
            for first in range(start, stop, rows):
                yield self._block(first, min(first + rows, stop))
            return
        carried: ActivationBlock | None = None
        for pool in self._pools(start, stop, max(self.pool_rows, rows), torch.Generator().manual_seed(seed)):
            mixed = pool if carried is None else _joined([carried, pool])
            whole = len(mixed.tokens) - len(mixed.tokens) % rows
            for first in range(0, whole, rows):
                yield _slice(mixed, first, first + rows)
            carried = _slice(mixed, whole, len(mixed.tokens)) if whole < len(mixed.tokens) else None
        if carried is not None:
            yield carried

    def _pools(self, start: int, stop: int, pool_rows: int, generator: torch.Generator) -> Iterator[ActivationBlock]:
        """Stretches in random order, as many at a time as a pool holds, mixed within."""
        stretch = max(1, pool_rows // STRETCHES)
        firsts = torch.arange(start, stop, stretch)
        firsts = firsts[torch.randperm(len(firsts), generator=generator)]
        for chosen in firsts.split(STRETCHES):
            pool = _joined([self._block(first, min(first + stretch, stop)) for first in sorted(chosen.tolist())])
            order = torch.randperm(len(pool.tokens), generator=generator)
            yield ActivationBlock(pool.base[order], pool.finetuned[order], pool.tokens[order])

    def _block(self, start: int, stop: int) -> ActivationBlock:
        base, finetuned = self.source.read(start, stop)
        return ActivationBlock(base.float(), finetuned.float(), torch.arange(start, stop))

    def samples(self) -> Iterator[ActivationBlock]:
        """One block a sample, in the order of the text."""
        for sample in range(self.num_samples):
            yield self._block(int(self.starts[sample]), min(int(self.starts[sample + 1]), self.num_tokens))

    def locate(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """See `PairedActivations.locate`."""
        samples = torch.searchsorted(self.starts, tokens, right=True) - 1
        return samples, tokens - self.starts[samples]

    def sample_ids(self, sample: int) -> list[int]:
        """See `PairedActivations.sample_ids`."""
        return [
            int(token) for token in self.token_ids[int(self.starts[sample]) : int(self.starts[sample + 1])].tolist()
        ]


def default_pool_rows(d_model: int, dtype: torch.dtype) -> int:
    """Rows of both sides that `POOL_BYTES` hold. A function of the stored form alone, so that a seed gives one order on
    every machine.
    """
    return max(STRETCHES, POOL_BYTES // (2 * d_model * dtype.itemsize))


def _joined(blocks: Sequence[ActivationBlock]) -> ActivationBlock:
    return ActivationBlock(
        torch.cat([block.base for block in blocks]),
        torch.cat([block.finetuned for block in blocks]),
        torch.cat([block.tokens for block in blocks]),
    )


def _slice(block: ActivationBlock, start: int, stop: int) -> ActivationBlock:
    return ActivationBlock(block.base[start:stop], block.finetuned[start:stop], block.tokens[start:stop])
