"""What every reader of activations offers, whether they are in memory or in a store on disk: blocks of both sides'
residual stream at one layer.

Methods that learn from activations (PCA, dictionaries, activation analysis) take a `PairedActivations` and do not ask
where it comes from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class ActivationBlock:
    """Rows of both models at the same tokens.

    Attributes:
        base, finetuned: [N, d_model] float32 on the CPU, residual stream after the layer.
        tokens: [N] int64, index of each row's token in the order of the text (see `PairedActivations.locate`).
    """

    base: Tensor
    finetuned: Tensor
    tokens: Tensor

    @property
    def difference(self) -> Tensor:
        """[N, d_model] float32, finetuned minus base."""
        return self.finetuned - self.base


class PairedActivations(Protocol):
    """Activations of both sides after one layer, over the tokens of a corpus in the order of the text."""

    @property
    def layer(self) -> int:
        """Absolute layer."""

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""

    @property
    def num_tokens(self) -> int:
        """Rows in all."""

    @property
    def content_hash(self) -> str:
        """What decides the rows (pair, text, layer), for run keys."""

    def blocks(
        self, rows: int, seed: int | None = None, start: int = 0, stop: int | None = None
    ) -> Iterator[ActivationBlock]:
        """All rows of [start, stop), `rows` at a time (the last block may be shorter).

        Without a seed in the order of the text. With one, shuffled in blocks: large contiguous stretches are read in
        random order and mixed within, so that disk reads stay sequential; the same seed gives the same order. Every row
        comes exactly once.
        """

    @property
    def num_samples(self) -> int:
        """Samples that have rows."""

    @property
    def first_position(self) -> int:
        """Position (0 = first content token) of every sample's first row."""

    def samples(self) -> Iterator[ActivationBlock]:
        """One block a sample, in the order of the text."""

    def locate(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Sample index and place within the sample [N] of token indices [N]: the token is
        `sample_ids(sample)[place]`.
        """

    def sample_ids(self, sample: int) -> list[int]:
        """Token ids of one sample, from its first token that was kept."""
