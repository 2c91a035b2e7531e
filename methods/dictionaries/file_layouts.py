"""Published layouts of dictionaries, from tensors by name to our form. What cannot be read as it was meant is refused.

Crosscoders: `encoder.weight` [S, D, F], `encoder.bias` [F], `decoder.weight` [S, F, D], `decoder.bias` [S, D]. SAEs of
dictionary-learning: `encoder.weight` [F, D], `decoder.weight` [D, F], `b_dec` [D], which the encoder subtracts first.
SAEs of SAELens: `W_enc` [D, F], `W_dec` [F, D], `b_enc`, `b_dec`.

Normalisation of activations: ours (`normalisation.*`), or that of newer forks of dictionary-learning,
`(x - activation_mean) * activation_global_scale` with a scale of target_rms over the root of the summed variances; NaN
means stand for none there. Without either, activations are read as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.dictionaries.models import Normalisation, Selection, SparseDictionary

SELECTIONS: dict[int, Selection] = {1: "sum", 2: "joint", 4: "none"}
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


def read_layout(tensors: dict[str, Tensor], config: dict[str, Any], identifier: str) -> SparseDictionary:
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
    if code not in SELECTIONS:
        raise InvalidInput(
            f"The crosscoder {identifier!r} selects latents by mixed or decoupled norms, which is not supported."
        )
    parts = (
        tensors["encoder.weight"].reshape(-1, latents),
        tensors["encoder.bias"],
        tensors["decoder.weight"].transpose(0, 1).reshape(latents, -1),
        tensors["decoder.bias"].flatten(),
    )
    return _assembled(parts, tensors, SELECTIONS[code], sources, identifier)


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
