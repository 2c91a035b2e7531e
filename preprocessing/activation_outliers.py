"""Leaves out tokens whose activations are outliers: attention sinks (not the first token alone) have norms tens of
times the usual, and whatever minimises squared errors (principal components, dictionaries) would spend itself on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffing_mcp.preprocessing.activations import ActivationBlock, PairedActivations

NORM_MULTIPLE = 10.0
"""Rows whose norm, in either model, exceeds this many median norms are left out, as dictionary-learning does."""
_SAMPLED = 4096


@dataclass(frozen=True)
class WithoutOutliers:
    """A `PairedActivations` that skips outliers; blocks are as much shorter."""

    reader: PairedActivations
    limit: float

    @property
    def layer(self) -> int:
        return self.reader.layer

    @property
    def d_model(self) -> int:
        return self.reader.d_model

    @property
    def num_tokens(self) -> int:
        """Rows in all, with outliers."""
        return self.reader.num_tokens

    @property
    def content_hash(self) -> str:
        return f"{self.reader.content_hash}:norm<{self.limit:.6g}"

    @property
    def num_samples(self) -> int:
        return self.reader.num_samples

    @property
    def first_position(self) -> int:
        return self.reader.first_position

    def blocks(
        self, rows: int, seed: int | None = None, start: int = 0, stop: int | None = None
    ) -> Iterator[ActivationBlock]:
        """See `PairedActivations.blocks`."""
        return self._kept(self.reader.blocks(rows, seed, start, stop))

    def samples(self) -> Iterator[ActivationBlock]:
        """See `PairedActivations.samples`; samples of outliers alone are left out."""
        return self._kept(self.reader.samples())

    def locate(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """See `PairedActivations.locate`."""
        return self.reader.locate(tokens)

    def sample_ids(self, sample: int) -> list[int]:
        """See `PairedActivations.sample_ids`."""
        return self.reader.sample_ids(sample)

    def _kept(self, blocks: Iterator[ActivationBlock]) -> Iterator[ActivationBlock]:
        for block in blocks:
            kept = torch.maximum(block.base.norm(dim=1), block.finetuned.norm(dim=1)) <= self.limit
            if kept.all():
                yield block
            elif kept.any():
                yield ActivationBlock(block.base[kept], block.finetuned[kept], block.tokens[kept])


def without_outliers(reader: PairedActivations) -> PairedActivations:
    """The reader without rows beyond `NORM_MULTIPLE` times the median norm of the base model's first rows."""
    first = next(iter(reader.blocks(_SAMPLED)))
    return WithoutOutliers(reader, NORM_MULTIPLE * float(first.base.norm(dim=1).median()))
