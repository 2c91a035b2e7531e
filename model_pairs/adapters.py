"""Plain LoRA adapters on a resident model: attached with proof that every tensor landed and no base weight changed,
switched on and off, detached.

With no adapter active the adapter's modules are taken out of the model, so the base side runs exactly the bare model,
at its speed.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffing_mcp.core.errors import DiffingError, NotFinite, NotTheSame
from diffing_mcp.model_pairs.adapter_files import PREFIX, StoredAdapter, adapter_name

if TYPE_CHECKING:
    import torch

    from diffing_mcp.model_pairs.loading import ResidentModel

log = logging.getLogger(__name__)

_PROBE_TOKENS = 48


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
    """A module that computes what peft's plain LoRA layer computes, without its casts and temporaries; peft's own layer
    for all else.

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
        _put_in(resident)
        try:
            parameters = _injected(resident.transformer, name, stored)
        except Exception:
            _remove(resident, name)
            _find_slots(resident)
            _activate(resident, resident.active)
            raise
        for parameter in parameters:
            parameter.requires_grad_(False)
        _to_model_dtype(resident, name)
        adapter = AttachedAdapter(name, stored.folder, stored.changes_nothing, parameters)
        resident.adapters[name] = adapter
        _find_slots(resident)
        _activate(resident, resident.active)
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


@contextmanager
def loading_by_peft(stored: StoredAdapter) -> Iterator[None]:
    """Turns what peft raises into what a reader can act on; what it warns of is checked here and not repeated."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DiffingError:
        raise
    except Exception as error:
        log.exception("peft could not load an adapter")
        text = str(error)
        mismatch = re.search(
            r"size mismatch for (\S+):.*?Size\((\[[\d, ]*\])\).*?Size\((\[[\d, ]*\])\)", text, re.DOTALL
        )
        if mismatch:
            raise NotTheSame(
                f"The adapter was made for another model: its `{mismatch[1]}` has the shape {mismatch[2]}, this base "
                f"model needs {mismatch[3]}. Name the base model that the adapter was trained on."
            ) from error
        if "Target modules" in text or "target_modules" in text or "No modules were targeted" in text:
            raise NotTheSame(
                "The adapter was made for another model: it changes modules that this base model does not have. Name "
                "the base model that the adapter was trained on."
            ) from error
        reason = text.strip().splitlines()[0][:200] if text.strip() else type(error).__name__
        raise NotTheSame(
            f"peft cannot put this {stored.kind} adapter on this base model ({type(error).__name__}: {reason}). It was "
            "made for another model, another version of peft, or its files are incomplete."
        ) from error


def check_landed(stored: StoredAdapter, result: Any, model: Any, name: str) -> None:
    """Raise NotTheSame unless every tensor of the file went into the model and no tensor of the adapter was left
    unfilled.

    `result` is what peft's loading functions return: keys that it found no place for, and adapter keys that it found no
    tensor for. Such an adapter would silently compare the base model with itself, or with something that nobody
    trained.
    """
    # peft puts a learned prompt where it belongs apart from the others, and with a resized vocabulary it saves replaced
    # modules twice.
    unexpected = sorted(
        key.replace(f".{name}", "")
        for key in result.unexpected_keys
        if key != "prompt_embeddings"
        and not (".modules_to_save." in key and key.replace(".modules_to_save.", ".") in stored.shapes)
    )
    missing = {key for key in result.missing_keys if name in key.split(".") and not key.startswith("prompt_encoder.")}
    named = dict(model.named_parameters(remove_duplicate=False))
    filled = {id(parameter) for key, parameter in named.items() if key not in missing}
    # What several layers share is in the file once, and projections that are drawn from a seed are not in it.
    drawn = not stored.config.get("save_projection", True)
    unfilled = sorted(
        key.replace(f".{name}", "") for key in missing if key in named and id(named[key]) not in filled and not drawn
    )
    lines = []
    if unexpected:
        lines.append(
            f"{len(unexpected)} of {len(stored.shapes)} tensors have no place in the model, such as {unexpected[0]}"
        )
    if unfilled:
        lines.append(f"{len(unfilled)} tensors of the adapter were never filled, such as {unfilled[0]}")
    if lines:
        raise NotTheSame(
            f"The adapter's weights did not land on the base model: {'; '.join(lines)}. The finetuned side would not "
            "be the finetune. Check that the adapter was trained on this base model and saved by peft."
        )


def check_unspoiled(resident: ResidentModel) -> None:
    """Raise NotTheSame for a base whose weights an adapter has changed."""
    if resident.spoiled:
        raise NotTheSame(
            "An adapter changed the weights of this base model, which is being dropped from memory. Call again: it is "
            "loaded anew."
        )


def check_base_unchanged(resident: ResidentModel) -> None:
    """Raise NotTheSame when the base's own parameters or layers are not those that were loaded. The caller holds the
    lock.
    """
    from diffing_mcp.model_pairs.weight_digest import base_digest

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


def check_acts(stored: StoredAdapter, base: torch.Tensor, finetuned: torch.Tensor) -> None:
    """Raise NotTheSame for an adapter with weights that are not zero whose model predicts exactly what the
    base does.
    """
    import torch

    if torch.equal(base, finetuned) and any(bool(tensor.any()) for tensor in stored.tensors.values()):
        raise NotTheSame(
            f"This {stored.kind} adapter holds weights that are not zero, and yet the model with it predicts exactly "
            "what the base model does: either it does not act on plain text, or its changes are below the resolution "
            f"of {str(base.dtype).removeprefix('torch.')} (set DIFFING_DTYPE=float32). Every difference would be "
            "reported as zero."
        )


def probe_ids(model: Any, stored: StoredAdapter) -> torch.Tensor:
    """A fixed row of token ids [1, 48]: drawn from the whole vocabulary, those that the adapter trained first."""
    import torch

    config = stored.config
    trained = config.get("trainable_token_indices") or config.get("token_indices") or []
    chosen = [index for indices in (trained.values() if isinstance(trained, dict) else [trained]) for index in indices][
        :16
    ]
    rows = int(model.get_input_embeddings().weight.shape[0])
    drawn = torch.randint(0, rows, (_PROBE_TOKENS - len(chosen),), generator=torch.Generator().manual_seed(0)).tolist()
    return torch.tensor([[*chosen, *drawn]], device=model.device)


def probe_logits(model: Any, stored: StoredAdapter) -> torch.Tensor:
    """Logits [1, 48, V] of a model on `probe_ids`; of a model that puts learned tokens in front, those of the row
    alone.
    """
    import torch

    ids = probe_ids(model, stored)
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return logits[:, -_PROBE_TOKENS:]


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
        _remove(resident, name)
        del resident.adapters[name]
        _find_slots(resident)
        _activate(resident, None if resident.active == name else resident.active)


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


def activate(resident: ResidentModel, name: str | None) -> None:
    """Switch the model to an attached adapter, or to the bare model (None). The caller holds `resident.lock`."""
    check_unspoiled(resident)
    if resident.active != name:
        _activate(resident, name)


def _activate(resident: ResidentModel, name: str | None) -> None:
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


def _put_in(resident: ResidentModel) -> None:
    """Put every LoRA layer back, as peft's own functions expect to find them."""
    for slot in resident.slots:
        slot.parent._modules[slot.child_name] = slot.layer


def _find_slots(resident: ResidentModel) -> None:
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
