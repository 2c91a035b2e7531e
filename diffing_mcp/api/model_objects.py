"""Models that a notebook holds in memory, as folders that a pair can be loaded from.

A model object is saved once, by its own `save_pretrained`, below the cache folder under a name made of its content, and
from there takes the way of every other model: the same checks, the same identity, the same numbers. That costs its size
on disk, and a second copy of it in memory while the pair is loaded.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffing_mcp.core.atomic_files import new_folder
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.settings import settings

FOLDER = "model-objects"
# What `save_pretrained` writes into the configuration of the object that it saves, and what says where it came from.
_NOT_CONTENT = ("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path")
# What decides when an answer ends. How the checkpoint samples is left out: every method says how it samples, and
# transformers saves no model whose defaults contradict each other.
_ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_DIGITS = 16


def is_model_object(value: Any) -> bool:
    """Whether a value is a model in memory: one of transformers or peft."""
    return hasattr(value, "save_pretrained") and hasattr(value, "state_dict")


def saved_model(model: Any, tokenizer: Any | None) -> Path:
    """The folder that holds this model, or the adapter when it is a peft model, with the tokenizer; saved when it is
    not there yet.

    Raises:
        InvalidInput: weights that are not in memory, adapter layers inside of a plain model, several active adapters,
            or a model that its own `save_pretrained` cannot save.
    """
    model = getattr(model, "_orig_mod", model)  # what `torch.compile` has put around it
    if hasattr(model, "peft_config"):
        return _saved_adapter(model, tokenizer) if hasattr(model, "get_base_model") else _refused_adapter_layers()
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        return _refused_adapter_layers()
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise InvalidInput(
            "Some weights of this model are not in memory (they are offloaded). Load it without offloading, or give "
            "the hub id or the folder that it came from."
        )
    from diffing_mcp.model_pairs.weight_digest import tensors_digest

    config = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_CONTENT}
    own = getattr(model, "generation_config", None)
    ends = {name: getattr(own, name, None) for name in _ENDS}
    parts = [type(model).__name__, json.dumps(config, sort_keys=True, default=str), json.dumps(ends, default=str)]
    parts += [tensors_digest(model.state_dict().items()), _tokenizer_digest(tokenizer)]

    def save(folder: Path) -> None:
        if own is not None:
            model.generation_config = type(own)(**ends)
        try:
            model.save_pretrained(folder)
        finally:
            if own is not None:
                model.generation_config = own
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)

    return _kept(f"{type(model).__name__}-{_digest(*parts)}", save)


def _saved_adapter(model: Any, tokenizer: Any | None) -> Path:
    names = list(model.active_adapters)
    if len(names) != 1:
        raise InvalidInput(
            f"This model has {len(names)} active adapters ({', '.join(names)}); a side of a pair has one. Choose it "
            "with `model.set_adapter(name)`."
        )
    from peft import get_peft_model_state_dict

    from diffing_mcp.model_pairs.weight_digest import tensors_digest

    name = names[0]
    config = json.dumps(
        model.peft_config[name].to_dict(), sort_keys=True, default=lambda value: sorted(map(str, value))
    )
    weights = tensors_digest(sorted(get_peft_model_state_dict(model, adapter_name=name).items()))

    def save(folder: Path) -> None:
        model.save_pretrained(folder, selected_adapters=[name])
        if name != "default":  # peft gives every other adapter a folder of its own
            for file in (folder / name).iterdir():
                file.rename(folder / file.name)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)

    return _kept(f"adapter-{_digest(config, weights, _tokenizer_digest(tokenizer))}", save)


def _refused_adapter_layers() -> Path:
    raise InvalidInput(
        "This model has adapter layers in it: peft puts them into the base model that it is given. Give the peft model "
        "itself as the finetuned side, and the base as a hub id, a folder, or a model that was loaded anew."
    )


def _tokenizer_digest(tokenizer: Any | None) -> str:
    """A digest of the files that a tokenizer saves."""
    if tokenizer is None:
        return ""
    with tempfile.TemporaryDirectory() as name:
        tokenizer.save_pretrained(name)
        files = sorted(path for path in Path(name).rglob("*") if path.is_file())
        return _digest(*(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:_DIGITS]


def _kept(name: str, save: Callable[[Path], None]) -> Path:
    """The folder of that name; `save` fills it when it is not there, and it is there whole or not at all."""
    target = settings().cache_folder / FOLDER / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = new_folder(target.parent, ".saving-")
    try:
        save(staging)
        staging.rename(target)
    except OSError:  # another process was faster
        if not target.is_dir():
            raise
    except Exception as error:  # code of the architecture runs here: anything may be raised
        raise InvalidInput(f"This model cannot be saved by its own `save_pretrained`: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target
