"""Dictionaries in files: a folder with `model.safetensors` and `config.json`, here or on the hub. Never pickle.

Written in the layout of published ones, so that they load there too: crosscoders as `encoder.weight` [S, D, F],
`encoder.bias`, `decoder.weight` [S, F, D], `decoder.bias` [S, D]; SAEs as in dictionary-learning (`encoder.weight` [F,
D], `decoder.weight` [D, F], `b_dec`). What is read: `file_layouts`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffing_mcp.core.atomic_files import replace_synced
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.dictionaries.file_layouts import SELECTIONS, read_layout
from diffing_mcp.methods.dictionaries.models import SparseDictionary

_NAMES = ("model.safetensors", "sae_weights.safetensors", "ae.safetensors")
_CONFIGS = ("config.json", "cfg.json")


def save_dictionary(dictionary: SparseDictionary, folder: Path, config: dict[str, Any]) -> Path:
    """Write a dictionary and its `config` (JSON values: recipe, layer, what it was trained on) into `folder`, the
    weights last: a folder with weights holds a whole dictionary."""
    from safetensors.torch import save

    tensors = _crosscoder_tensors(dictionary) if dictionary.sources > 1 else _sae_tensors(dictionary)
    tensors["threshold"] = dictionary.threshold[0] if len(dictionary.threshold.unique()) == 1 else dictionary.threshold
    tensors["normalisation.mean"] = dictionary.normalisation.mean
    tensors["normalisation.scale"] = torch.tensor(dictionary.normalisation.scale)
    folder.mkdir(parents=True, exist_ok=True)
    shape = {
        "activation_dim": dictionary.width,
        "dict_size": dictionary.num_latents,
        "num_encoder_layers": dictionary.sources,
    }
    replace_synced(folder / "config.json", json.dumps(shape | config, indent=1).encode())
    replace_synced(
        folder / "model.safetensors", save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    )
    return folder


def _crosscoder_tensors(dictionary: SparseDictionary) -> dict[str, Tensor]:
    sources, width, latents = dictionary.sources, dictionary.width, dictionary.num_latents
    code = next(number for number, selection in SELECTIONS.items() if selection == dictionary.selection)
    return {
        "encoder.weight": dictionary.encoder.view(sources, width, latents),
        "encoder.bias": dictionary.encoder_bias,
        "decoder.weight": dictionary.decoder.view(latents, sources, width).transpose(0, 1),
        "decoder.bias": dictionary.decoder_bias.view(sources, width),
        "code_normalization_id": torch.tensor(code),
    }


def _sae_tensors(dictionary: SparseDictionary) -> dict[str, Tensor]:
    return {
        "encoder.weight": dictionary.encoder.T,
        "encoder.bias": dictionary.encoder_bias
        + dictionary.decoder_bias @ dictionary.encoder,  # theirs subtracts `b_dec` first
        "decoder.weight": dictionary.decoder.T,
        "b_dec": dictionary.decoder_bias,
    }


def weights_file(identifier: str) -> Path:
    """The safetensors file of a dictionary: a local folder, or `account/repository[//folder][@revision]` on the hub.
    Downloads when needed.

    Raises:
        InvalidInput: there is none.
    """
    from diffing_mcp.model_pairs.files import hub_place, is_local, local_folder

    folder = local_folder(identifier) if is_local(identifier) else local_folder(*hub_place(identifier))
    found = [folder / name for name in _NAMES if (folder / name).is_file()]
    found = found or sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("."))
    if len(found) != 1:
        inside = sorted({file.parent.relative_to(folder).as_posix() for file in folder.glob("*/**/*.safetensors")})
        name_one = (
            f" Its folders with some, to be named as REPOSITORY//FOLDER (here: a path): {', '.join(inside[:10])}."
            if inside
            else ""
        )
        raise InvalidInput(
            f"The dictionary {identifier!r} has {len(found) or 'no'} safetensors files; one is needed "
            f"(model.safetensors).{name_one} Weights in .pt files are not read, because that format executes code."
        )
    return found[0]


def content_hash(identifier: str) -> str:
    """sha256 of the weights, for run keys."""
    with weights_file(identifier).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_dictionary(identifier: str, sources: int, d_model: int) -> SparseDictionary:
    """A dictionary from a local folder or the hub, on the CPU in float32.

    Args:
        sources: 1 for an SAE, 2 for a crosscoder.
        d_model: width that it must have.

    Raises:
        InvalidInput: no weights, another layout, or another number of sources or width.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = weights_file(identifier)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InvalidInput(
            f"The weights of the dictionary {identifier!r} are damaged or not complete. Copy or download them again; "
            "one that was trained here can be deleted (`diffing dictionaries delete ID`) and trained again."
        ) from error
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    dictionary = read_layout(tensors, _config_beside(path, identifier), identifier)
    if dictionary.sources != sources or dictionary.width != d_model:
        raise InvalidInput(
            f"The dictionary {identifier!r} has {dictionary.sources} source(s) of width {dictionary.width}; wanted: "
            f"{sources} of width {d_model}."
        )
    return dictionary


def _config_beside(weights: Path, identifier: str) -> dict[str, Any]:
    """Configuration of published dictionaries; empty where there is none."""
    file = next((weights.with_name(name) for name in _CONFIGS if weights.with_name(name).is_file()), None)
    if file is None:
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"{file.name} of the dictionary {identifier!r} is not JSON. Copy or download it again."
        ) from error
    if not isinstance(config, dict):
        raise InvalidInput(
            f"{file.name} of the dictionary {identifier!r} holds no JSON object. Copy or download it again."
        )
    return config
