"""Dictionaries in files: a folder with `model.safetensors` and `config.json`, here or on the hub. Never pickle.

Written and read are the layouts of published ones, so that they load there too. Crosscoders: `encoder.weight`
[S, D, F], `encoder.bias` [F], `decoder.weight` [S, F, D], `decoder.bias` [S, D]. SAEs of dictionary-learning:
`encoder.weight` [F, D], `decoder.weight` [D, F], `b_dec` [D], which the encoder subtracts first. SAEs of SAELens (read
alone): `W_enc` [D, F], `W_dec` [F, D], `b_enc`, `b_dec`. What cannot be read as it was meant is refused.

Normalisation of activations: ours (`normalisation.*`), or that of newer forks of dictionary-learning,
`(x - activation_mean) * activation_global_scale` with a scale of target_rms over the root of the summed variances; NaN
means stand for none there. Without either, activations are read as they are.
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
from diffing_mcp.methods.dictionaries.models import Normalisation, Selection, SparseDictionary

_NAMES = ("model.safetensors", "sae_weights.safetensors", "ae.safetensors")
_CONFIGS = ("config.json", "cfg.json")
_SELECTIONS: dict[int, Selection] = {1: "sum", 2: "joint", 4: "none"}
"""`code_normalization_id` of published crosscoders."""
_CROSSCODER = {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"}
_SAE = {"encoder.weight", "encoder.bias", "decoder.weight", "b_dec"}
_SAE_LENS = {"W_enc", "b_enc", "W_dec", "b_dec"}
_OURS = {"normalisation.mean", "normalisation.scale"}
_FORKS = {"activation_mean", "activation_std", "activation_global_scale", "target_rms"}
_KNOWN = _CROSSCODER | _SAE | _SAE_LENS | _OURS | _FORKS | {"k", "threshold", "code_normalization_id"}
_SCALE_TOLERANCE = 0.02
"""Of the stored scale against that which follows from its standard deviations: they may have been rounded
to 16 bits.
"""
_ARCHITECTURES = ("standard", "jumprelu")
"""Of SAELens; its BatchTopK SAEs are saved as jumprelu."""


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
    dictionary = _read_layout(tensors, _config_beside(path, identifier), identifier)
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


def _read_layout(tensors: dict[str, Tensor], config: dict[str, Any], identifier: str) -> SparseDictionary:
    """A dictionary from its tensors (float32) and the configuration beside them (empty where there is none).

    Raises:
        InvalidInput: an unknown layout, or something that our form cannot hold.
    """
    if unknown := set(tensors) - _KNOWN:
        raise InvalidInput(
            f"The dictionary {identifier!r} has tensors of an unknown meaning ({', '.join(sorted(unknown)[:5])}); "
            "without them it would be read wrongly."
        )
    if set(tensors) >= _SAE_LENS:
        return _from_sae_lens(tensors, config, identifier)
    if set(tensors) >= _CROSSCODER:
        return _from_crosscoder(tensors, identifier)
    if set(tensors) >= _SAE:
        return _from_sae(tensors, identifier)
    raise InvalidInput(
        f"The weights of {identifier!r} are in no known layout. Known: crosscoders (encoder.weight, encoder.bias, "
        "decoder.weight, decoder.bias), dictionary-learning's SAEs (with b_dec), and SAELens's (W_enc, b_enc, W_dec, "
        "b_dec)."
    )


def _from_crosscoder(tensors: dict[str, Tensor], identifier: str) -> SparseDictionary:
    sources, width, latents = _shape(tensors["encoder.weight"], 3, "encoder.weight", identifier)
    _expect(
        tensors,
        identifier,
        {"encoder.bias": (latents,), "decoder.weight": (sources, latents, width), "decoder.bias": (sources, width)},
    )
    code = int(tensors["code_normalization_id"]) if "code_normalization_id" in tensors else 1
    if code not in _SELECTIONS:
        raise InvalidInput(
            f"The crosscoder {identifier!r} selects latents by mixed or decoupled norms, which is not supported."
        )
    parts = (
        tensors["encoder.weight"].reshape(-1, latents),
        tensors["encoder.bias"],
        tensors["decoder.weight"].transpose(0, 1).reshape(latents, -1),
        tensors["decoder.bias"].flatten(),
    )
    return _assembled(parts, tensors, _SELECTIONS[code], sources, identifier)


def _from_sae(tensors: dict[str, Tensor], identifier: str) -> SparseDictionary:
    weight, bias = tensors["encoder.weight"], tensors["b_dec"]
    latents, width = _shape(weight, 2, "encoder.weight", identifier)
    _expect(tensors, identifier, {"encoder.bias": (latents,), "decoder.weight": (width, latents), "b_dec": (width,)})
    parts = (
        weight.T.contiguous(),
        tensors["encoder.bias"] - weight @ bias,
        tensors["decoder.weight"].T.contiguous(),
        bias,
    )
    return _assembled(parts, tensors, "none", 1, identifier)


def _from_sae_lens(tensors: dict[str, Tensor], config: dict[str, Any], identifier: str) -> SparseDictionary:
    encoder, bias = tensors["W_enc"], tensors["b_enc"]
    width, latents = _shape(encoder, 2, "W_enc", identifier)
    _expect(tensors, identifier, {"b_enc": (latents,), "W_dec": (latents, width), "b_dec": (width,)})
    architecture = config.get("architecture", "jumprelu" if "threshold" in tensors else "standard")
    activation = config.get("activation_fn_str", config.get("activation_fn", "relu"))
    if architecture not in _ARCHITECTURES or activation != "relu":
        raise InvalidInput(
            f"The SAE {identifier!r} has the architecture {architecture!r} with the activation {activation!r}, which "
            f"would be read wrongly as a ReLU. Read are {' and '.join(_ARCHITECTURES)} with relu."
        )
    if (architecture == "jumprelu") != ("threshold" in tensors):
        raise InvalidInput(
            f"The SAE {identifier!r} says {architecture!r} and has {'a' if 'threshold' in tensors else 'no'} "
            "threshold; it is not whole."
        )
    if (normalised := config.get("normalize_activations", "none")) not in ("none", None, False):
        raise InvalidInput(
            f"The SAE {identifier!r} reads activations that were normalised first (normalize_activations: "
            f"{normalised!r}), which is not supported; what SAELens can fold into the weights "
            "(expected_average_only_in) is read once it is folded and saved again."
        )
    # SAELens takes the decoder bias off by default; files without its configuration come from code that does not.
    if config.get("apply_b_dec_to_input", "architecture" in config):
        bias = bias - tensors["b_dec"] @ encoder
    return _assembled((encoder, bias, tensors["W_dec"], tensors["b_dec"]), tensors, "none", 1, identifier)


def _shape(value: Tensor, dimensions: int, name: str, identifier: str) -> tuple[int, ...]:
    if value.dim() != dimensions:
        raise InvalidInput(
            f"The dictionary {identifier!r} has {value.dim()} dimensions in {name}, where its layout has {dimensions}."
        )
    return tuple(value.shape)


def _expect(tensors: dict[str, Tensor], identifier: str, shapes: dict[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise InvalidInput(
                f"The dictionary {identifier!r} has the shape {list(tensors[name].shape)} in {name}; its other weights "
                f"ask for {list(shape)}."
            )


def _assembled(
    parts: tuple[Tensor, Tensor, Tensor, Tensor],
    tensors: dict[str, Tensor],
    selection: Selection,
    sources: int,
    identifier: str,
) -> SparseDictionary:
    encoder, encoder_bias, decoder, decoder_bias = parts
    threshold = _threshold(tensors, len(encoder_bias), identifier)
    normalisation = _normalisation(tensors, len(decoder_bias), identifier)
    return SparseDictionary(encoder, encoder_bias, decoder, decoder_bias, threshold, selection, normalisation, sources)


def _threshold(tensors: dict[str, Tensor], latents: int, identifier: str) -> Tensor:
    """[F]; 0 is a plain ReLU. Where only a count `k` says which latents fire, the batch would decide."""
    threshold = tensors.get("threshold")
    if "k" in tensors and (threshold is None or bool((threshold < 0).any())):
        raise InvalidInput(
            f"The dictionary {identifier!r} keeps the k strongest latents and has no threshold for single tokens (it "
            "was not trained long enough to have one, or is a TopK SAE), which is not supported."
        )
    if threshold is None:
        return torch.zeros(latents)
    if threshold.numel() not in (1, latents):
        raise InvalidInput(f"The dictionary {identifier!r} has {threshold.numel()} thresholds for {latents} latents.")
    return threshold.flatten().clamp_min(0.0).expand(latents).clone()


def _normalisation(tensors: dict[str, Tensor], width: int, identifier: str) -> Normalisation:
    if set(tensors) >= _OURS:
        return Normalisation(tensors["normalisation.mean"], float(tensors["normalisation.scale"]))
    if not _FORKS & set(tensors):
        return Normalisation.none(width)
    if missing := sorted(_FORKS - {"target_rms"} - set(tensors)):
        raise InvalidInput(
            f"The dictionary {identifier!r} normalises activations, but {', '.join(missing)} is missing; it would be "
            "read wrongly."
        )
    mean, deviation = tensors["activation_mean"].flatten(), tensors["activation_std"].flatten()
    if bool(mean.isnan().any()) or bool(deviation.isnan().any()):
        return Normalisation.none(width)
    if len(mean) != width or len(deviation) != width:
        raise InvalidInput(
            f"The dictionary {identifier!r} normalises {len(mean)} dimensions of activations and reads {width}."
        )
    scale = float(tensors["activation_global_scale"])
    expected = float(tensors.get("target_rms", torch.ones(()))) / float(
        deviation.double().square().sum().sqrt().clamp_min(1e-30)
    )
    if abs(scale / expected - 1) > _SCALE_TOLERANCE:
        raise InvalidInput(
            f"The dictionary {identifier!r} does not normalise activations by one scale (that which follows from "
            f"activation_std and target_rms is {expected:.4g}, its own {scale:.4g}); normalisation of each dimension "
            "by itself is not supported."
        )
    return Normalisation(mean, scale)
