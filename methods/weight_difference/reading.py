"""What singular directions read as: write directions through the logit lens, read directions against the input
embedding, vocabulary-sized ones by their own entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from diffing_mcp.methods.directions.lens import Lens
from diffing_mcp.methods.directions.lens_words import Reading
from diffing_mcp.model_pairs.interventions import unit_length

if TYPE_CHECKING:
    from diffing_mcp.core.progress import Progress
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import Side

_ROWS = 8192
_DIRECTIONS = 64

BothSigns = tuple[Reading, Reading]


def read_written(lens: Lens, directions: Sequence[Tensor], progress: Progress) -> list[BothSigns]:
    """What each direction [d_model] promotes, and what its negative does."""
    found = []
    for done, direction in enumerate(directions):
        progress(done, len(directions), "reading directions")
        readings = lens.read(direction)
        if readings is not None:  # unit vectors are never zero
            found.append(readings)
    return found


def read_embeddings(pair: LoadedPair, side: Side, directions: Sequence[Tensor], progress: Progress) -> list[BothSigns]:
    """Cosine of every input embedding with each direction [d_model], standardised over the vocabulary.

    The gain of the norm before the module is not folded in. Memory: vocabulary x 64 directions.
    """
    found: list[BothSigns] = []
    for start in range(0, len(directions), _DIRECTIONS):
        progress(start, len(directions), "reading directions")
        group = unit_length(torch.stack(list(directions[start : start + _DIRECTIONS])).float())
        cosines = torch.empty(pair.vocab_size, group.shape[0])
        for first in range(0, pair.vocab_size, _ROWS):
            last = min(first + _ROWS, pair.vocab_size)
            cosines[first:last] = unit_length(pair.token_rows(side, range(first, last), "input")) @ group.T
        found += [read_entries(column) for column in cosines.T]
    return found


def read_entries(values: Tensor) -> BothSigns:
    """Entries [V] of a vocabulary-sized vector, standardised over the vocabulary; no probabilities belong to them."""
    centred = values.double() - values.double().mean()
    deviation = float(centred.std())
    z = (centred / deviation if deviation else torch.zeros_like(centred)).numpy()
    nothing = np.zeros_like(z)
    return Reading(z, nothing), Reading(-z, nothing)
