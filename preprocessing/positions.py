"""The compared positions of a corpus, text by text: what accumulators of one number a position keep them in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus


class CorpusPositions:
    """All compared positions [N] of S texts, in the order of the text, whatever the order of the pass.

    Attributes:
        lengths: [S] int64, positions of each text.
        starts: [S] int64, where each text's positions begin.
        samples, numbers: [N] int64, the text and the position in it (0 = first content token).
    """

    def __init__(self, corpus: TokenizedCorpus, device: torch.device | str = "cpu") -> None:
        self._corpus = corpus
        self.lengths = corpus.ids.lengths - np.asarray(corpus.content_start, dtype=np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.samples = np.repeat(np.arange(len(self.lengths)), self.lengths)
        self.numbers = np.arange(len(self.samples)) - self.starts[self.samples]
        self._starts = torch.as_tensor(self.starts, device=device)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def token_ids(self) -> np.ndarray:
        """[N] int32, the token read at each position."""
        begins = self._corpus.ids.starts[:-1] + np.asarray(self._corpus.content_start, dtype=np.int64)
        return np.asarray(self._corpus.ids.flat[begins[self.samples] + self.numbers])

    def means_by_text(self, values: np.ndarray) -> np.ndarray:
        """[S] float64 means of values [N] over each text."""
        return np.bincount(self.samples, weights=values, minlength=len(self.lengths)) / self.lengths

    def means_by_number(self, values: np.ndarray) -> np.ndarray:
        """[longest] float64 means of values [N] at each position, over the texts that reach it."""
        return np.bincount(self.numbers, weights=values) / np.bincount(self.numbers)

    def indices(self, samples: Tensor, numbers: Tensor) -> Tensor:
        """[R] long on the device: where these positions of these texts stand among all."""
        return self._starts[samples] + numbers
