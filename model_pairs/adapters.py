"""Plain LoRA adapters on a resident model: attached with proof that every tensor landed and no base weight changed,
switched on and off, detached.

With no adapter active the adapter's modules are taken out of the model, so the base side runs exactly the bare model,
at its speed.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from diffing_mcp.core.errors import NotFinite, NotTheSame
from diffing_mcp.model_pairs.adapter_files import PREFIX, StoredAdapter, adapter_name
from diffing_mcp.model_pairs.lora_slots import AttachedAdapter
from diffing_mcp.model_pairs.peft_loading import check_acts, check_landed, loading_by_peft, probe_logits
from diffing_mcp.model_pairs.switching import activate, check_unspoiled, find_slots, put_in, switch
from diffing_mcp.model_pairs.weight_digest import base_digest

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.resident import ResidentModel

log = logging.getLogger(__name__)


def attach(resident: ResidentModel, stored: StoredAdapter) -> AttachedAdapter:
    """Attach a LoRA (or find it attached) without activating it, as peft's own `PeftModel` loads it; the model is as
    before when this fails.

    The base's weights and layers are the same afterwards, to the last bit: `ResidentModel.digest` is compared.

    Raises:
        NotTheSame: made for another model, not all of it landed, weights that are not zero and yet change nothing, or a
            base that was changed (which is then not used any more).
        InvalidInput: not a readable adapter.
    """
    name = adapter_name(stored.folder)
    with resident.lock:
        check_unspoiled(resident)
        if name in resident.adapters:
            return resident.adapters[name]
        put_in(resident)
        try:
            parameters = _injected(resident.transformer, name, stored)
        except Exception:
            _remove(resident, name)
            find_slots(resident)
            switch(resident, resident.active)
            raise
        for parameter in parameters:
            parameter.requires_grad_(False)
        _to_model_dtype(resident, name)
        adapter = AttachedAdapter(name, stored.folder, stored.changes_nothing, parameters)
        resident.adapters[name] = adapter
        find_slots(resident)
        switch(resident, resident.active)
        try:
            check_base_unchanged(resident)
            if not adapter.changes_nothing:
                _check_acts(resident, stored, name)
        except Exception:
            detach(resident, name)
            raise
        return adapter


def _injected(transformer: Any, name: str, stored: StoredAdapter) -> list[Any]:
    """The adapter's parameters after peft has put its layers into the model and filled them."""
    from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict
    from peft.utils.save_and_load import load_peft_weights

    with loading_by_peft(stored):
        config = PeftConfig.from_pretrained(str(stored.folder))
        config.inference_mode = True
        inject_adapter_in_model(config, transformer, name)
        transformer.eval()  # new layers come in training mode, with their dropout on
        transformer._hf_peft_config_loaded = True
        tensors = load_peft_weights(
            str(stored.folder), device="cpu", key_mapping=getattr(transformer, "_checkpoint_conversion_mapping", {})
        )
        # Without a `PeftModel` around it the model has no prefix; peft looks for one in the names of its matrices only.
        tensors = {key if ".lora_" in key else key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}
        check_landed(stored, set_peft_model_state_dict(transformer, tensors, adapter_name=name), transformer, name)
    return [
        parameter for key, parameter in transformer.named_parameters(remove_duplicate=False) if name in key.split(".")
    ]


def check_base_unchanged(resident: ResidentModel) -> None:
    """Raise NotTheSame when the base's own parameters or layers are not those that were loaded. The caller holds the
    lock.
    """
    if base_digest(resident) != resident.digest:
        resident.spoiled = True
        raise NotTheSame(
            "Loading this adapter changed the base model that it is compared with, so neither side could be trusted. "
            "The base is dropped from memory and loaded anew by the next call. Merge the adapter into a full model and "
            "name that."
        )


def _check_acts(resident: ResidentModel, stored: StoredAdapter, name: str) -> None:
    before = resident.active
    try:
        outputs = []
        for each in (None, name):
            activate(resident, each)
            outputs.append(probe_logits(resident.transformer, stored))
    except NotFinite:  # the first pass says of which side and of which weights
        return
    finally:
        activate(resident, before)
    check_acts(stored, *outputs)


def _to_model_dtype(resident: ResidentModel, name: str) -> None:
    """Adapters compute in the model's dtype: peft's float32 default casts every activation there and back."""
    for layer in _lora_layers(resident):
        for part in (layer.lora_A, layer.lora_B):
            if name in part:
                part[name].to(resident.dtype)


def _lora_layers(resident: ResidentModel) -> Iterator[Any]:
    from peft.tuners.lora import LoraLayer

    for module in resident.transformer.modules():
        if isinstance(module, LoraLayer):
            yield module


def detach(resident: ResidentModel, name: str) -> None:
    """Remove an adapter and its memory."""
    with resident.lock:
        if name not in resident.adapters:
            return
        put_in(resident)
        _remove(resident, name)
        del resident.adapters[name]
        find_slots(resident)
        switch(resident, None if resident.active == name else resident.active)


def _remove(resident: ResidentModel, name: str) -> None:
    """Take an adapter out of every layer of peft, whether or not all of it had been put in. All layers are put in."""
    from peft.functional import delete_adapter

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which adapter is active is set afterwards
        delete_adapter(resident.transformer, adapter_name=name, prefix="lora_")
    configs = getattr(resident.transformer, "peft_config", {})
    configs.pop(name, None)
    if not configs and hasattr(resident.transformer, "peft_config"):
        del resident.transformer.peft_config
