"""The highest-scoring places of every feature while scores stream by: running top-k by feature and quantile bin,
vectorised. Torch-free.

A method feeds batches of (feature, score, sample, position) in any order and writes what is left with
`diffing_mcp.methods.examples.writer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_PENDING = 200_000
"""Entries gathered before they are sorted into the kept ones."""


@dataclass(frozen=True)
class Found:
    """Places, [N] each, ordered by feature, bin, falling score, sample and position.

    Attributes:
        features, bins, samples, positions: int64.
        scores: float64.
    """

    features: np.ndarray
    bins: np.ndarray
    scores: np.ndarray
    samples: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.features)

    def _take(self, chosen: np.ndarray) -> Found:
        return Found(
            self.features[chosen], self.bins[chosen], self.scores[chosen], self.samples[chosen], self.positions[chosen]
        )


def _joined(parts: Sequence[Found]) -> Found:
    columns = zip(
        *((part.features, part.bins, part.scores, part.samples, part.positions) for part in parts), strict=True
    )
    return Found(*(np.concatenate(column) for column in columns))


class TopExamples:
    """Keeps the `per_bin` highest scores of every (feature, bin); memory O(features x bins x per_bin).

    Ties go to the lower sample, then the lower position, so that the outcome does not depend on the order of the
    batches.

    Args:
        per_bin: places kept of each feature and bin.
        edges: ascending inner edges of the bins [E], as shares of the feature's `scale`, or of each feature [F, E];
            none: one bin. A score at an edge is in the higher bin.
        scale: [F] positive, what a score is divided by to find its bin (such as the feature's highest score in an
            earlier pass); None: 1.
        per_document: keep only the highest place of each sample for a feature, so that neighbours in one text do not
            fill the list. With `edges`, a sample must then come whole in one `add`.
        least: scores must be above this.
    """

    def __init__(
        self,
        per_bin: int,
        edges: Sequence[float] | np.ndarray = (),
        scale: np.ndarray | None = None,
        per_document: bool = True,
        least: float = -np.inf,
    ) -> None:
        self.per_bin = per_bin
        self.edges = np.asarray(edges, dtype=np.float64)
        self.scale = None if scale is None else np.asarray(scale, dtype=np.float64)
        self.per_document = per_document
        self.least = least
        self._parts: list[Found] = []
        self._pending = 0
        self._lowest = np.zeros(0)
        """By feature and bin: the lowest kept score where the bin is full."""

    @property
    def bins(self) -> int:
        """Number of bins."""
        return int(self.edges.shape[-1]) + 1

    def add(self, features: Any, scores: Any, samples: Any, positions: Any) -> None:
        """Take in places: arrays or tensors [N] of any device, or single numbers that hold for all. Scores that are not
        finite are left out.
        """
        columns = np.broadcast_arrays(*(_array(values) for values in (features, scores, samples, positions)))
        kept = np.isfinite(columns[1]) & (columns[1] > self.least)
        indices, values, texts, places = (column[kept] for column in columns)
        features, values = indices.astype(np.int64), values.astype(np.float64)
        relative = values if self.scale is None else values / self.scale[features]
        edges = self.edges if self.edges.ndim == 1 else self.edges[features]
        bins = (
            np.searchsorted(edges, relative, side="right")
            if edges.ndim == 1
            else (relative[:, None] >= edges).sum(axis=1)
        )
        found = Found(features, bins, values, texts.astype(np.int64), places.astype(np.int64))
        # With bins, a sample's highest place decides its bin, so it must be known before full bins turn places away.
        if self.per_document and self.bins > 1:
            found = self._distinct(found)
        groups = found.features * self.bins + found.bins
        if len(groups) and int(groups.max()) >= len(self._lowest):
            room = np.full(max(int(groups.max()) + 1, 2 * len(self._lowest)), -np.inf)
            room[: len(self._lowest)] = self._lowest
            self._lowest = room
        found = found._take(found.scores >= self._lowest[groups])
        if self.per_document and self.bins == 1:
            found = self._distinct(found)
        self._parts.append(found)
        self._pending += len(found)
        if self._pending > _PENDING:
            self._settle()

    def found(self) -> Found:
        """What is kept now."""
        self._settle()
        return self._parts[0]

    def _distinct(self, found: Found) -> Found:
        """The highest place of each (feature, sample), or each (feature, sample, position) once."""
        keys = (
            (found.features, found.samples) if self.per_document else (found.features, found.samples, found.positions)
        )
        order = np.lexsort((found.positions, -found.scores, *reversed(keys)))
        return found._take(order[_begins(*(key[order] for key in keys))])

    def _settle(self) -> None:
        none = np.zeros(0, dtype=np.int64)
        empty = Found(none, none, np.zeros(0), none, none)
        found = self._distinct(_joined([*self._parts, empty]))
        groups = found.features * self.bins + found.bins
        order = np.lexsort((found.positions, found.samples, -found.scores, groups))
        found, groups = found._take(order), groups[order]
        starts = _begins(groups)
        ranks = np.arange(len(groups)) - np.repeat(starts, np.diff(np.append(starts, len(groups))))
        last = ranks == self.per_bin - 1
        self._lowest[groups[last]] = found.scores[last]
        self._parts, self._pending = [found._take(ranks < self.per_bin)], 0


def _begins(*keys: np.ndarray) -> np.ndarray:
    """Indices at which any of the sorted keys takes a new value."""
    new = np.ones(len(keys[0]), dtype=bool)
    new[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return np.flatnonzero(new)


def _array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):  # a torch tensor; numpy has no bfloat16
        tensor = values.detach()
        return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy())
    return np.asarray(values)
