"""One side of a loaded pair: how to get at its model, and what to switch on there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.amplification_config import WeightOf
    from diffing_mcp.model_pairs.interventions import Intervention
    from diffing_mcp.model_pairs.resident import ResidentModel


@dataclass(frozen=True)
class LoadedSide:
    """How to get at one side: a context that keeps its model in memory, and what to switch on there."""

    hold: Callable[[], AbstractContextManager[ResidentModel]]
    adapter: str | None
    steering: tuple[Intervention, ...]
    differences: tuple[Difference, ...] = ()
    """Weight differences that are added to what the side is, of an amplified pair (`LoadedPair.amplified`)."""
    in_memory: Callable[[], bool] = lambda: True
    """Whether `hold` loads no model now."""
    digest: Callable[[], str] = str
    """Content of the weights that run: those of the model, the adapter's and the steering vector's."""


@dataclass(frozen=True)
class SideInMemory:
    """A side whose model stays in memory. `switched_on` is entered for each pass, so that between passes other work may
    run on the same model: it locks the model and switches on what the side is.
    """

    resident: ResidentModel
    steering: tuple[Intervention, ...]
    switched_on: Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Difference:
    """A weight difference, finetuned minus origin, and how often it counts at each place."""

    finetuned: LoadedSide
    origin: LoadedSide
    weight: WeightOf
