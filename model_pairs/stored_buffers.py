"""Buffers that checkpoints hold beside the parameters: what routers of mixtures of experts balance their load by
(GLM 4, DeepSeek V3), what Gemma 4 multiplies its layers by. Training moves some of them, outside of the optimiser.

Buffers that a model makes anew from its configuration, such as frequencies of rotary embeddings, are none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from diffing_mcp.model_pairs.modules import ModulePlace, Places, walk
from diffing_mcp.model_pairs.switching import activate

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.resident import ResidentModel


@dataclass(frozen=True)
class StoredBuffer:
    """One stored buffer: the place of its module, its name there, and its values on the model's device."""

    place: ModulePlace
    name: str
    values: torch.Tensor

    @property
    def full_name(self) -> str:
        """Name in the bare model."""
        return f"{self.place.name}.{self.name}"

    def equals(self, other: StoredBuffer) -> bool:
        """Whether both hold the same numbers."""
        one, another = self.values, other.values
        return one is another or torch.equal(one, another.to(one.device))


def own_buffers(module: Any) -> dict[str, torch.Tensor]:
    """The stored buffers of one module, without those of the modules inside of it."""
    passing = module._non_persistent_buffers_set
    return {name: value for name, value in module._buffers.items() if value is not None and name not in passing}


def stored_tensors(resident: ResidentModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Every stored buffer of the model without the adapters attached to it, as `parameters_of` gives its parameters.
    The caller holds `resident.lock`.
    """
    if resident.own_adapter is not None:
        owners = iter(resident.transformer.named_modules())
    else:
        owners = ((name, bare) for name, _, bare in walk(resident.transformer, None, _owns_buffers))
    for name, owner in owners:
        yield from ((f"{name}.{own}", values.detach()) for own, values in own_buffers(owner).items())


def _owns_buffers(module: Any) -> bool:
    return bool(own_buffers(module))


def buffers_of(resident: ResidentModel, adapter: str | None) -> dict[str, StoredBuffer]:
    """The stored buffers of a model with an adapter switched on, by their names in the bare model. The caller holds
    `resident.lock`.
    """
    activate(resident, adapter)
    places = Places(resident)
    found = [
        StoredBuffer(places.of(name, bare), own, values.detach())
        for name, _, bare in walk(resident.transformer, adapter, _owns_buffers)
        for own, values in own_buffers(bare).items()
    ]
    return {each.full_name: each for each in found}
