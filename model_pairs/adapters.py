"""LoRA adapters on a resident model: attached with proof that every tensor landed, switched on and off, detached.

With no adapter active the adapter's modules are taken out of the model, so the base side runs exactly the bare model, at its speed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_pairs.fingerprint import adapter_hash
from organisms.errors import DiffingError, InvalidInput, NotTheSame

if TYPE_CHECKING:
    import torch

    from model_pairs.loading import ResidentModel

log = logging.getLogger(__name__)

_PREFIX = "base_model.model."


@dataclass
class AttachedAdapter:
    """One adapter on a resident model."""

    name: str
    folder: Path
    changes_nothing: bool
    """All its B matrices are zero (and it replaces no module), so the finetuned side equals the base."""
    parameters: list[Any] = field(default_factory=list)

    def tensors(self) -> list[torch.Tensor]:
        """Its parameters, wherever the modules are at the moment."""
        return self.parameters


@dataclass
class Slot:
    """A place in the model where a LoRA layer belongs."""

    parent: Any
    child_name: str
    layer: Any
    """peft's layer, which holds the matrices of every adapter that changes this place."""
    lean: dict[str, Any] = field(default_factory=dict)

    def module_for(self, name: str | None) -> Any:
        """What belongs here while adapter `name` (None: no adapter) is active."""
        if name is None or (name not in self.layer.lora_A and name not in self.layer.lora_embedding_A):
            return self.layer.base_layer
        if name not in self.lean:
            self.lean[name] = _lean(self.layer, name)
        return self.lean[name]


def _lean(layer: Any, name: str) -> Any:
    """A module that computes what peft's plain LoRA layer computes, without its casts and temporaries; peft's own layer for all else.

    On 2 CPU cores an adapter costs 8 % of a batch of 64 x 30 tokens this way, and 30 % through peft's layer.
    """
    import torch
    from peft.tuners.lora.layer import Linear

    base = layer.base_layer
    plain = (
        type(layer) is Linear
        and isinstance(base, torch.nn.Linear)
        and name not in layer.lora_variant
        and not layer.lora_bias.get(name, False)
        and not layer.merged
        and layer.lora_A[name].weight.dtype == base.weight.dtype
    )
    if not plain:
        return layer

    class LeanLora(torch.nn.Module):
        """y = base(x) + scaling * (x A^T) B^T, added in place."""

        def __init__(self) -> None:
            super().__init__()
            self.base_layer = base
            self.first = layer.lora_A[name].weight
            self.second = layer.lora_B[name].weight
            self.scaling = float(layer.scaling[name])

        @property
        def weight(self) -> torch.Tensor:
            """The base weight: some architectures look at its dtype."""
            return base.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result = self.base_layer(x)
            low = torch.nn.functional.linear(x, self.first)
            result.view(-1, result.shape[-1]).addmm_(low.view(-1, low.shape[-1]), self.second.t(), alpha=self.scaling)
            return result

    return LeanLora().eval()


def adapter_name(folder: Path) -> str:
    """Name of an adapter inside a model: from its content, so equal adapters share one and different ones never clash."""
    return "adapter_" + adapter_hash(folder).split(":")[1][:16]


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Configuration and tensors of an adapter folder. Raises InvalidInput when they are not there or are not those of a LoRA."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    adapter_hash(folder)
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
    except (json.JSONDecodeError, SafetensorError, OSError) as error:
        raise InvalidInput(f"The adapter's files cannot be read ({type(error).__name__}): they are damaged or incomplete.") from error
    if config.get("peft_type") != "LORA":
        raise InvalidInput(
            f"Adapters of the type LORA can be attached, this one is {config.get('peft_type')}. Merge it into a full model and name that."
        )
    if not any(".lora_B" in key or ".lora_embedding_B" in key for key in tensors):
        raise NotTheSame("The adapter's file holds no lora_B matrix, so it could not change anything. It is not a complete adapter.")
    return config, tensors


def check_fits(transformer: torch.nn.Module, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Raise NotTheSame when the adapter was made for another model: modules that do not exist here, or other sizes.

    LoRA: lora_A is [rank, in], lora_B [out, rank], for a base weight [out, in] (transposed for transformers' Conv1D).
    """
    modules = dict(transformer.named_modules())
    absent = []
    for key, tensor in tensors.items():
        for part in (".lora_A.", ".lora_B."):
            if part not in key or tensor.ndim != 2:
                continue
            name = key.removeprefix(_PREFIX).split(part)[0]
            module = modules.get(name)
            if module is None:
                absent.append(name)
                continue
            weight = getattr(getattr(module, "base_layer", module), "weight", None)
            if weight is None or weight.ndim != 2:
                continue
            size = tensor.shape[1] if part == ".lora_A." else tensor.shape[0]
            if size not in weight.shape:
                raise NotTheSame(
                    f"The adapter was made for another model: its {part.strip('.')} for `{name}` has size {size}, "
                    f"the base model's weight there is {tuple(weight.shape)}. Name the base model that the adapter was trained on."
                )
    # A key that names no module is fatal when none does; some newer architectures fuse modules and peft converts names at load.
    if absent and len(absent) * 1.0 >= sum(".lora_" in key for key in tensors):
        raise NotTheSame(
            f"The adapter was made for another model: it changes `{sorted(absent)[0]}`, which this base model does not have. "
            "Name the base model that the adapter was trained on."
        )


def take_restated(transformer: torch.nn.Module, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Take out of `tensors` the base weights that peft saved with the adapter (embeddings it targets).

    Raises:
        NotTheSame: they are not the base model's: loading them would overwrite the side they are compared with.
    """
    import torch

    parameters = {name.replace(".base_layer", ""): parameter for name, parameter in transformer.named_parameters(remove_duplicate=False)}
    replaced = tuple(config.get("modules_to_save") or ())
    for key in list(tensors):
        name = key.removeprefix(_PREFIX).replace(".base_layer", "")
        if name not in parameters or name.rsplit(".", 1)[0].endswith(replaced or ("\0",)):
            continue
        base = parameters[name].detach().cpu()
        if base.shape != tensors[key].shape or not torch.equal(base, tensors[key].to(base.dtype)):
            raise NotTheSame(
                f"The adapter brings a changed `{name}` {tuple(tensors[key].shape)} that is no LoRA; the base model's {tuple(base.shape)} would be "
                "overwritten. Merge the adapter into a full model and name that as the finetuned side."
            )
        del tensors[key]


def check_landed(transformer: torch.nn.Module, name: str, tensors: dict[str, torch.Tensor]) -> list[torch.nn.Parameter]:
    """The adapter's parameters inside the model, after comparing every tensor of the file with the one loaded, by name and value.

    Raises:
        NotTheSame: naming what did not land. Such an adapter would silently compare the base model with itself.
    """
    import torch

    loaded: dict[str, torch.nn.Parameter] = {}
    for key, parameter in transformer.named_parameters(remove_duplicate=False):
        if f".{name}" in key:
            loaded[_saved_name(key, name)] = parameter
    missing: list[str] = []
    different: list[str] = []
    for key, tensor in tensors.items():
        found = loaded.get(key.removeprefix(_PREFIX))
        if found is None:
            missing.append(key)
        elif found.shape != tensor.shape or not torch.equal(found.detach().cpu(), tensor.to(found.dtype)):
            different.append(key)
    unfilled = sorted(set(loaded) - {key.removeprefix(_PREFIX) for key in tensors})
    unfilled = [key for key in unfilled if ".lora_B" in key or ".lora_embedding_B" in key]
    if missing or different or unfilled:
        lines = []
        for what, keys in (("are not in the model", missing), ("have other values in the model", different), ("were never filled", unfilled)):
            if keys:
                lines.append(f"{len(keys)} of {len(tensors)} {what}, such as {keys[0]}")
        raise NotTheSame(
            f"The adapter's weights did not land on the base model: {'; '.join(lines)}. The finetuned side would not be the finetune. "
            "Check that the adapter was trained on this base model and saved by peft."
        )
    return list(loaded.values())


def _saved_name(key: str, name: str) -> str:
    """The name under which peft saves a parameter of adapter `name`."""
    saved = key.removeprefix(_PREFIX).replace(f".modules_to_save.{name}", "").replace(f".{name}", "")
    return saved.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")


def changes_nothing(tensors: dict[str, torch.Tensor]) -> bool:
    """Whether an adapter with these tensors leaves the model as it is: every B (or every A) is zero and no other tensor is there."""
    others = [key for key in tensors if ".lora_A" not in key and ".lora_B" not in key and ".lora_embedding_" not in key]
    if others:
        return False
    second = [tensor for key, tensor in tensors.items() if ".lora_B" in key or ".lora_embedding_B" in key]
    return all(not bool(tensor.any()) for tensor in second)


def attach(resident: ResidentModel, folder: Path) -> AttachedAdapter:
    """Attach an adapter (or find it attached) without activating it; the model is as before when this fails.

    Raises:
        NotTheSame: made for another model, or not all of it landed.
        InvalidInput: not a readable LoRA adapter.
    """
    name = adapter_name(folder)
    with resident.lock:
        if name in resident.adapters:
            return resident.adapters[name]
        config, tensors = read_adapter(folder)
        whole = set(config.get("modules_to_save") or ())
        if shared := sorted(whole & {slot.child_name for slot in resident.slots}):
            raise InvalidInput(
                f"This adapter replaces the whole module {shared[0]!r}, which another adapter in memory changes by LoRA; peft cannot hold both on one "
                "base. Unload the base model first, or merge one of the two."
            )
        _put_in(resident)
        try:
            check_fits(resident.transformer, config, tensors)
            take_restated(resident.transformer, config, tensors)
            try:
                resident.transformer.load_adapter(str(folder), adapter_name=name)
                _free_copies(resident.transformer, name)
                parameters = check_landed(resident.transformer, name, tensors)
            except DiffingError:
                raise
            except (RuntimeError, ValueError, KeyError, OSError, TypeError) as error:
                log.exception("attaching failed")
                raise NotTheSame(
                    f"The adapter cannot be attached to this base model ({type(error).__name__}): it was made for another model or is damaged."
                ) from error
        except Exception:
            if name in getattr(resident.transformer, "peft_config", {}):
                resident.transformer.delete_adapter(name)
            _find_slots(resident)
            _activate(resident, resident.active)
            raise
        for parameter in parameters:
            parameter.requires_grad_(False)
        _to_model_dtype(resident, name)
        adapter = AttachedAdapter(name, folder, changes_nothing(tensors), parameters)
        resident.adapters[name] = adapter
        _find_slots(resident)
        _activate(resident, resident.active)
        return adapter


def _free_copies(transformer: Any, name: str) -> None:
    """Give modules that the adapter replaces as a whole their own forward.

    peft makes them by deepcopy, and the copy of a traced module still calls the original one: the new weights would never be used.
    """
    from accelerate.hooks import add_hook_to_module
    from peft.utils.other import ModulesToSaveWrapper

    for wrapper in [module for module in transformer.modules() if isinstance(module, ModulesToSaveWrapper)]:
        if name not in wrapper.modules_to_save:
            continue
        for module in wrapper.modules_to_save[name].modules():
            if "__nnsight_forward__" in module.__dict__:
                hook = module.__dict__.get("_hf_hook")
                for attribute in ("forward", "__nnsight_forward__", "__source_accessor__", "_hf_hook", "_old_forward"):
                    module.__dict__.pop(attribute, None)
                if hook is not None:
                    add_hook_to_module(module, hook)


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
        _put_in(resident)
        resident.transformer.delete_adapter(name)
        del resident.adapters[name]
        _find_slots(resident)
        _activate(resident, None if resident.active == name else resident.active)


def activate(resident: ResidentModel, name: str | None) -> None:
    """Switch the model to an attached adapter, or to the bare model (None). The caller holds `resident.lock`."""
    if resident.active != name:
        _activate(resident, name)


def _activate(resident: ResidentModel, name: str | None) -> None:
    """Put in the LoRA layers of adapter `name`, and the original layers everywhere else: the bare model pays nothing for adapters."""
    resident.active = name
    if resident.other_wrappers:
        _put_in(resident)
        _switch_other_wrappers(resident, name)
    for slot in resident.slots:
        module = slot.module_for(name)
        if module is slot.layer:
            _select(slot.layer, name)
        slot.parent._modules[slot.child_name] = module


def _select(layer: Any, name: str | None) -> None:
    """Let a layer of peft compute with adapter `name` only; without any when that is None or no adapter of this layer.

    Layer by layer, because transformers' `set_adapter` walks the whole model and raises at the first layer that does not know `name`.
    """
    if not any(name in getattr(layer, part) for part in layer.adapter_layer_names):
        if not layer.disable_adapters:
            layer.enable_adapters(False)
    elif layer.disable_adapters or layer.active_adapters != [name]:
        layer.enable_adapters(True)
        layer.set_adapter(name, inference_mode=True)


def _switch_other_wrappers(resident: ResidentModel, name: str | None) -> None:
    """Switch what peft wraps besides plain LoRA layers: modules replaced as a whole, trained token rows, layers wrapped twice.

    By hand, because transformers' `enable_adapters` leaves replaced modules off after `disable_adapters`.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for module in resident.transformer.modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            used = name in module._adapters
            module.enable_adapters(used)
            if used:
                module.set_adapter(str(name))
        elif isinstance(module, BaseTunerLayer):
            _select(module, name)


def _put_in(resident: ResidentModel) -> None:
    """Put every LoRA layer back, as peft's own functions expect to find them."""
    for slot in resident.slots:
        slot.parent._modules[slot.child_name] = slot.layer


def _find_slots(resident: ResidentModel) -> None:
    """Find where LoRA layers sit (all are put in), drop those that no adapter uses any more, and note other wrappers of peft."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    resident.slots = []
    inside: set[int] = set()
    for parent in list(resident.transformer.modules()):
        for child_name, child in list(parent._modules.items()):
            if not isinstance(child, LoraLayer) or isinstance(parent, LoraLayer) or isinstance(child.base_layer, LoraLayer):
                continue
            inside.add(id(child))
            if child.lora_A or child.lora_embedding_A:
                resident.slots.append(Slot(parent, child_name, child))
            else:
                parent._modules[child_name] = child.base_layer
    resident.other_wrappers = any(
        isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) and id(module) not in inside for module in resident.transformer.modules()
    )


def merged(transformer: Any, folder: Path) -> Any:
    """The model with the adapter merged into its weights (in the model's dtype), no adapter left. Raises NotTheSame like `attach`."""
    from peft import PeftModel

    config, tensors = read_adapter(folder)
    check_fits(transformer, config, tensors)
    take_restated(transformer, config, tensors)
    name = adapter_name(folder)
    try:
        peft_model = PeftModel.from_pretrained(transformer, str(folder), adapter_name=name, is_trainable=False)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise NotTheSame(f"The adapter cannot be attached to this base model ({type(error).__name__}): it was made for another model.") from error
    check_landed(peft_model, name, tensors)
    return peft_model.merge_and_unload(adapter_names=[name]).requires_grad_(False).eval()
