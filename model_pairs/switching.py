"""Switching a resident model between its adapters and the bare model, whose modules run untouched while no adapter is
active.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from diffing_mcp.core.errors import NotTheSame
from diffing_mcp.model_pairs.lora_slots import Slot

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.resident import ResidentModel


def check_unspoiled(resident: ResidentModel) -> None:
    """Raise NotTheSame for a base whose weights an adapter has changed."""
    if resident.spoiled:
        raise NotTheSame(
            "An adapter changed the weights of this base model, which is being dropped from memory. Call again: it is "
            "loaded anew."
        )


def activate(resident: ResidentModel, name: str | None) -> None:
    """Switch the model to an attached adapter, or to the bare model (None). The caller holds `resident.lock`."""
    check_unspoiled(resident)
    if name not in (None, resident.own_adapter, *resident.adapters):
        raise NotTheSame(
            "The adapter of this side is not on its model, which would run as the bare base model. Open the pair again."
        )
    if resident.active != name:
        switch(resident, name)


@contextmanager
def switched_on(resident: ResidentModel, name: str | None) -> Iterator[None]:
    """The model locked, with an attached adapter or as the bare model (None): for one pass, or what belongs to it."""
    with resident.lock:
        activate(resident, name)
        yield


def switch(resident: ResidentModel, name: str | None) -> None:
    """Put in the LoRA layers of adapter `name`, and the original layers everywhere else: the bare model pays nothing
    for adapters.
    """
    resident.active = name
    for slot in resident.slots:
        module = slot.module_for(name)
        if module is slot.layer:
            _select(slot.layer, name)
        slot.parent._modules[slot.child_name] = module


def _select(layer: Any, name: str | None) -> None:
    """Let a layer of peft compute with adapter `name` only; without any when that is None or no adapter of this layer.

    Layer by layer, because transformers' `set_adapter` walks the whole model and raises at the first layer that does
    not know `name`.
    """
    if not any(name in getattr(layer, part) for part in layer.adapter_layer_names):
        if not layer.disable_adapters:
            layer.enable_adapters(False)
    elif layer.disable_adapters or layer.active_adapters != [name]:
        layer.enable_adapters(True)
        layer.set_adapter(name, inference_mode=True)


def put_in(resident: ResidentModel) -> None:
    """Put every LoRA layer back, as peft's own functions expect to find them."""
    for slot in resident.slots:
        slot.parent._modules[slot.child_name] = slot.layer


def find_slots(resident: ResidentModel) -> None:
    """Find where LoRA layers sit (all are put in), and drop those that no adapter uses any more."""
    from peft.tuners.lora import LoraLayer

    resident.slots = []
    for parent in list(resident.transformer.modules()):
        for child_name, child in list(parent._modules.items()):
            if not isinstance(child, LoraLayer) or isinstance(parent, LoraLayer):
                continue
            if child.lora_A or child.lora_embedding_A:
                resident.slots.append(Slot(parent, child_name, child))
            else:
                parent._modules[child_name] = child.base_layer
