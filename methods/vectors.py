"""Directions of the residual stream that finished runs offer to other methods: steering, patchscope, causal tests, the oracle.

A vector is named `RUN/NAME`: the id of a finished run and a name whose form its method decides (`14:all:difference`, `component3`, `latent42`).
Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from organisms.errors import InvalidInput

if TYPE_CHECKING:
    from methods.runs import RunRecord, RunStore


@dataclass(frozen=True)
class ResidualVector:
    """One direction of the residual stream after a layer.

    Attributes:
        values: [d_model] float32, in the units of the residual stream (any normalisation that a method trained with is undone).
        layer: absolute layer.
        scale: L2 length, in the units of the residual stream, that a steering strength of 1 stands for: what is typical of this direction (the norm of
            activations for a mean difference, the largest activation times the decoder norm for a latent). Positive.
        label: what the vector is, in a few words.
    """

    values: np.ndarray
    layer: int
    scale: float
    label: str

    def at_strength(self, strength: float) -> np.ndarray:
        """[d_model] float32: what steering at `strength` adds, `strength * scale * values / |values|`; zero for a zero vector."""
        length = float(np.linalg.norm(self.values))
        return self.values * np.float32(strength * self.scale / length) if length else np.zeros_like(self.values)


def split_handle(handle: str) -> tuple[str, str]:
    """Run id and vector name of `RUN/NAME`.

    Raises:
        InvalidInput: another form.
    """
    run, slash, name = handle.strip().partition("/")
    if not run or not slash or not name:
        raise InvalidInput(f"{handle!r} does not name a vector. Vectors are named RUN/NAME, as the results of methods print them.")
    return run, name


def stored_vector(handle: str, store: RunStore) -> tuple[RunRecord, ResidualVector]:
    """The run and the vector that `RUN/NAME` names.

    Raises:
        UnknownName: no such run, or no such vector in it.
        InvalidInput: another form, or a method whose runs give no vectors.
    """
    from methods.registry import get_method

    run, name = split_handle(handle)
    record = store.get(run)
    return record, get_method(record.manifest.method).vector(record, name)
