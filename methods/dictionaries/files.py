"""Dictionaries in files: a folder with `model.safetensors` and `config.json`, here or on the hub. Never pickle.

Written in the layout of published ones, so that they load there too: crosscoders as `encoder.weight` [S, D, F], `encoder.bias`, `decoder.weight`
[S, F, D], `decoder.bias` [S, D]; SAEs as in dictionary-learning (`encoder.weight` [F, D], `decoder.weight` [D, F], `b_dec`). Read in these and in that of
SAELens (`W_enc`, `W_dec`). Our `normalisation.*` tensors are extra; a dictionary without them reads activations as they are.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.dictionaries.models import Normalisation, Selection, SparseDictionary
from organisms.durable import sync_folder, write_synced
from organisms.errors import InvalidInput

_SELECTIONS: dict[int, Selection] = {1: "sum", 2: "joint", 4: "none"}
"""`code_normalization_id` of published crosscoders."""
_NAMES = ("model.safetensors", "sae_weights.safetensors", "ae.safetensors")
_LIBRARY = {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias", "b_dec", "k", "threshold", "code_normalization_id"}
_SAE_LENS = {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}
_OURS = {"normalisation.mean", "normalisation.scale"}


def save_dictionary(dictionary: SparseDictionary, folder: Path, config: dict[str, Any]) -> Path:
    """Write a dictionary and its `config` (JSON values: recipe, layer, what it was trained on) into `folder`."""
    from safetensors.torch import save

    tensors = _crosscoder_tensors(dictionary) if dictionary.sources > 1 else _sae_tensors(dictionary)
    tensors["threshold"] = dictionary.threshold[0] if len(dictionary.threshold.unique()) == 1 else dictionary.threshold
    tensors["normalisation.mean"] = dictionary.normalisation.mean
    tensors["normalisation.scale"] = torch.tensor(dictionary.normalisation.scale)
    folder.mkdir(parents=True, exist_ok=True)
    shape = {"activation_dim": dictionary.width, "dict_size": dictionary.num_latents, "num_encoder_layers": dictionary.sources}
    write_synced(folder / "config.json", json.dumps(shape | config, indent=1).encode())
    write_synced(folder / "model.safetensors", save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}))
    sync_folder(folder)
    return folder


def _crosscoder_tensors(dictionary: SparseDictionary) -> dict[str, Tensor]:
    sources, width, latents = dictionary.sources, dictionary.width, dictionary.num_latents
    code = next(number for number, selection in _SELECTIONS.items() if selection == dictionary.selection)
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
        "encoder.bias": dictionary.encoder_bias + dictionary.decoder_bias @ dictionary.encoder,  # theirs subtracts `b_dec` first
        "decoder.weight": dictionary.decoder.T,
        "b_dec": dictionary.decoder_bias,
    }


def weights_file(identifier: str) -> Path:
    """The safetensors file of a dictionary: a local folder or a hub id, with `@revision` where wanted. Downloads when needed.

    Raises:
        InvalidInput: there is none.
    """
    from model_pairs.files import is_local, local_folder

    name, at, revision = identifier.partition("@") if not is_local(identifier) else (identifier, "", "")
    folder = local_folder(name, revision if at else None)
    found = [folder / name for name in _NAMES if (folder / name).is_file()] or sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise InvalidInput(
            f"The dictionary {identifier!r} has {len(found) or 'no'} safetensors files; one is needed (model.safetensors). "
            "Weights in .pt files are not read, because that format executes code."
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
    from safetensors.torch import load_file

    path = weights_file(identifier)
    config_file = next((path.with_name(name) for name in ("config.json", "cfg.json") if path.with_name(name).is_file()), None)
    config = json.loads(config_file.read_text(encoding="utf-8")) if config_file else {}
    tensors = load_file(path)
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    if unknown := set(tensors) - _LIBRARY - _SAE_LENS - _OURS:
        raise InvalidInput(
            f"The dictionary {identifier!r} has tensors of an unknown meaning ({', '.join(sorted(unknown)[:5])}); without them it would be read wrongly."
        )
    dictionary = _read(tensors, config, identifier)
    if dictionary.sources != sources or dictionary.width != d_model:
        raise InvalidInput(
            f"The dictionary {identifier!r} has {dictionary.sources} source(s) of width {dictionary.width}; wanted: {sources} of width {d_model}."
        )
    return dictionary


def _read(tensors: dict[str, Tensor], config: dict[str, Any], identifier: str) -> SparseDictionary:
    if {"W_enc", "b_enc", "W_dec", "b_dec"} <= set(tensors):
        return _from_sae_lens(tensors, config)
    if {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"} <= set(tensors):
        return _from_crosscoder(tensors, config, identifier)
    if {"encoder.weight", "encoder.bias", "decoder.weight", "b_dec"} <= set(tensors):
        weight, bias = tensors["encoder.weight"], tensors["b_dec"]
        parts = (weight.T.contiguous(), tensors["encoder.bias"] - weight @ bias, tensors["decoder.weight"].T.contiguous(), bias)
        return _assembled(parts, tensors, "none", 1)
    raise InvalidInput(
        f"The weights of {identifier!r} are in no known layout. Known: crosscoders (encoder.weight, encoder.bias, decoder.weight, decoder.bias), "
        "dictionary-learning's SAEs (with b_dec), and SAELens's (W_enc, b_enc, W_dec, b_dec)."
    )


def _from_crosscoder(tensors: dict[str, Tensor], config: dict[str, Any], identifier: str) -> SparseDictionary:
    weight, decoder = tensors["encoder.weight"], tensors["decoder.weight"]
    if weight.dim() != 3 or decoder.shape != (weight.shape[0], weight.shape[2], weight.shape[1]):
        raise InvalidInput(f"The weights of {identifier!r} have the names of a crosscoder, but not its shapes [S, D, F] and [S, F, D].")
    code = int(tensors["code_normalization_id"]) if "code_normalization_id" in tensors else 1
    if code not in _SELECTIONS:
        raise InvalidInput(f"The crosscoder {identifier!r} selects latents by mixed or decoupled norms, which is not supported.")
    parts = (
        weight.reshape(-1, weight.shape[2]),
        tensors["encoder.bias"],
        decoder.transpose(0, 1).reshape(weight.shape[2], -1),
        tensors["decoder.bias"].flatten(),
    )
    return _assembled(parts, tensors, _SELECTIONS[code], len(weight))


def _from_sae_lens(tensors: dict[str, Tensor], config: dict[str, Any]) -> SparseDictionary:
    encoder, bias = tensors["W_enc"], tensors["b_enc"]
    if config.get("apply_b_dec_to_input", False):
        bias = bias - tensors["b_dec"] @ encoder
    return _assembled((encoder, bias, tensors["W_dec"], tensors["b_dec"]), tensors, "none", 1)


def _assembled(parts: tuple[Tensor, Tensor, Tensor, Tensor], tensors: dict[str, Tensor], selection: Selection, sources: int) -> SparseDictionary:
    encoder, encoder_bias, decoder, decoder_bias = parts
    threshold = tensors.get("threshold", torch.zeros(())).clamp_min(0.0).expand(len(encoder_bias)).clone()
    normalisation = Normalisation.none(len(decoder_bias))
    if set(tensors) >= _OURS:
        normalisation = Normalisation(tensors["normalisation.mean"], float(tensors["normalisation.scale"]))
    return SparseDictionary(encoder, encoder_bias, decoder, decoder_bias, threshold, selection, normalisation, sources)
