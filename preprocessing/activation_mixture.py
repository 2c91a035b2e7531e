"""Several stored collections as one: training on chats, web text and what the finetune was trained on at once.

Rows of all collections are laid out in turns, whole samples at a time, each collection by its share of the rows: any
long stretch of the mixture, its beginning and its end as well, holds all of them in proportion to their size. So a
shuffled pool, a statistic over the first rows and rows held out at the end are fair to all. Nothing is copied on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.preprocessing.activation_rows import STRETCHES, ActivationRows, RowSource

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.specs import PairSpec
    from diffing_mcp.preprocessing.activation_store import ActivationStore

ROUNDS = 1000
"""Turns in which a mixture is laid out at least (as far as whole samples allow): what a share of it may be
unfair by.
"""


def open_collections(
    store: ActivationStore, identifiers: Sequence[str], spec: PairSpec, layers: Sequence[int], limit: int | None = None
) -> dict[int, ActivationRows]:
    """Readers of one collection, or of the mixture of several: its first `limit` rows, or all.

    Raises:
        UnknownName: no collection of an id, or several.
        InvalidInput: one is named twice, unfinished, of another pair, without one of the layers, or of another dtype or
            width than the others.
    """
    if len(identifiers) == 1:
        return store.open(identifiers[0], spec, layers, limit)
    found = [store.finished(identifier) for identifier in identifiers]
    if twice := sorted({index.id for index in found if sum(other.key == index.key for other in found) > 1}):
        raise InvalidInput(
            f"{', '.join(twice)} is named more than once. Name each collection once; they are mixed in proportion to "
            "their size."
        )
    opened = [store.open(index.key, spec, layers) for index in found]
    for name in ("dtype", "d_model"):
        if len({getattr(index, name) for index in found}) > 1:
            held = ", ".join(f"{index.id} {getattr(index, name)}" for index in found)
            raise InvalidInput(
                f"Collections that are mixed must have one {name}, and these have: {held}. Collect again with the same "
                f"{name}."
            )
    return {layer: mixed([readers[layer] for readers in opened], limit) for layer in layers}


def mixed(parts: Sequence[ActivationRows], limit: int | None = None) -> ActivationRows:
    """Readers of one layer as one reader: every sample of each, in turns. Positions count from the first kept token
    where the parts disagree.
    """
    rows = [part.num_tokens for part in parts]
    total = sum(rows)
    pool_rows = min(part.pool_rows for part in parts)
    turn = max(1, min(pool_rows // STRETCHES, total // ROUNDS))
    pieces = [_Pieces.of(part.starts.numpy(), number, turn * rows[number] / total) for number, part in enumerate(parts)]
    joined = _Pieces(
        *(np.concatenate(columns) for columns in zip(*(vars(piece).values() for piece in pieces), strict=True))
    )
    order = np.argsort((joined.starts + joined.stops) / (2 * np.asarray(rows)[joined.parts]), kind="stable")
    joined = _Pieces(*(column[order] for column in vars(joined).values()))
    lengths = [parts[part].starts[first : last + 1].diff() for part, first, last in joined.samples()]
    digest = hashlib.sha256(repr([part.content_hash for part in parts]).encode()).hexdigest()
    firsts = {part.first_position for part in parts}
    return ActivationRows(
        layer=parts[0].layer,
        d_model=parts[0].d_model,
        num_tokens=total if limit is None else min(limit, total),
        content_hash=digest,
        starts=torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(lengths).cumsum(0)]),
        token_ids=torch.cat([parts[part].token_ids[start:stop] for part, start, stop in joined.ranges()]),
        first_position=firsts.pop() if len(firsts) == 1 else 0,
        source=_MixedSource(
            [part.source for part in parts], joined, np.concatenate([[0], np.cumsum(joined.stops - joined.starts)])
        ),
        pool_rows=pool_rows,
    )


@dataclass(frozen=True)
class _Pieces:
    """Runs of whole samples, [P] int64 each: of which part, samples [first, last) and rows [start, stop) there."""

    parts: np.ndarray
    firsts: np.ndarray
    lasts: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    @staticmethod
    def of(starts: np.ndarray, part: int, rows: float) -> _Pieces:
        """Pieces of about `rows` rows (or one sample) of a part whose samples start at `starts` [S + 1]."""
        turns = np.floor(starts[:-1] / rows)
        firsts = np.flatnonzero(np.concatenate([[True], turns[1:] != turns[:-1]]))
        lasts = np.append(firsts[1:], len(starts) - 1)
        return _Pieces(np.full(len(firsts), part), firsts, lasts, starts[firsts], starts[lasts])

    def samples(self) -> Sequence[tuple[int, int, int]]:
        """Part, first sample and the one after the last, of each piece."""
        return list(zip(self.parts.tolist(), self.firsts.tolist(), self.lasts.tolist(), strict=True))

    def ranges(self) -> Sequence[tuple[int, int, int]]:
        """Part, first row and the one after the last, of each piece."""
        return list(zip(self.parts.tolist(), self.starts.tolist(), self.stops.tolist(), strict=True))


@dataclass(frozen=True)
class _MixedSource:
    """Rows of a mixture; `places` [P + 1] is where its pieces lie."""

    sources: Sequence[RowSource]
    pieces: _Pieces
    places: np.ndarray

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See `RowSource`."""
        first = int(np.searchsorted(self.places, start, side="right")) - 1
        last = int(np.searchsorted(self.places, stop, side="left"))
        base, finetuned = [], []
        for piece in range(first, last):
            offset = int(self.pieces.starts[piece]) - int(self.places[piece])
            lowest, highest = max(start, int(self.places[piece])), min(stop, int(self.places[piece + 1]))
            sides = self.sources[int(self.pieces.parts[piece])].read(lowest + offset, highest + offset)
            base.append(sides[0])
            finetuned.append(sides[1])
        return torch.cat(base), torch.cat(finetuned)
