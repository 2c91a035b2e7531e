"""Dictionaries in published layouts: what is read gives the numbers of whoever wrote it, and what would
not is refused.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.dictionaries.files import load_dictionary, save_dictionary


def test_published_forms_load(tmp_path: Path) -> None:
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE

    generator = torch.Generator().manual_seed(0)
    library = BatchTopKSAE(8, 16, 2)
    for parameter in library.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    library.threshold = torch.tensor(0.7)
    folder = tmp_path / "library"
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in library.state_dict().items()}, folder / "model.safetensors")
    rows = torch.randn(20, 8, generator=generator)
    loaded = load_dictionary(str(folder), 1, 8)
    torch.testing.assert_close(loaded.encode(rows), library.encode(rows).detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loaded.decode(loaded.encode(rows)), library(rows).detach(), rtol=1e-4, atol=1e-4)

    weights = {
        "encoder.weight": torch.randn(2, 8, 16, generator=generator),
        "encoder.bias": torch.randn(16, generator=generator),
        "decoder.weight": torch.randn(2, 16, 8, generator=generator),
        "decoder.bias": torch.randn(2, 8, generator=generator),
        "threshold": torch.tensor(20.0),
        "k": torch.tensor(3),
    }
    folder = tmp_path / "crosscoder"
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    both = torch.randn(20, 2, 8, generator=generator)
    raw = torch.relu(torch.einsum("nsd,sdf->nf", both, weights["encoder.weight"]) + weights["encoder.bias"])
    active = raw * (raw * weights["decoder.weight"].norm(dim=2).sum(0) > 20)
    written = torch.einsum("nf,sfd->nsd", active, weights["decoder.weight"]) + weights["decoder.bias"]
    loaded = load_dictionary(str(folder), 2, 8)
    assert 0 < int((active > 0).sum()) < int((raw > 0).sum())
    torch.testing.assert_close(loaded.encode(both.flatten(1)), active, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loaded.decode(active), written.flatten(1), rtol=1e-4, atol=1e-4)
    save_file(weights | {"something": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(InvalidInput, match="unknown meaning"):
        load_dictionary(str(folder), 2, 8)
    (folder / "model.safetensors").rename(folder / "model.pt")
    with pytest.raises(InvalidInput, match="safetensors"):
        load_dictionary(str(folder), 2, 8)


def _crosscoder_weights(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "encoder.weight": torch.randn(2, 8, 16, generator=generator),
        "encoder.bias": torch.randn(16, generator=generator),
        "decoder.weight": torch.randn(2, 16, 8, generator=generator),
        "decoder.bias": torch.randn(2, 8, generator=generator),
        "threshold": torch.tensor(2.0),
        "k": torch.tensor(3),
    } | more


def _published(
    folder: Path, weights: dict[str, torch.Tensor], config: dict[str, Any] | None = None, name: str = "cfg.json"
) -> str:
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    (folder / name).write_text(json.dumps(config or {}))
    return str(folder)


def _forks_buffers(target_rms: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    deviation = 0.5 + torch.rand(2, 8, generator=generator)
    return {
        "activation_mean": torch.randn(2, 8, generator=generator),
        "activation_std": deviation,
        "activation_global_scale": target_rms / deviation.square().sum().sqrt(),
        "target_rms": torch.tensor(target_rms),
    }


def test_normalisation_of_published_crosscoders_is_applied(tmp_path: Path) -> None:
    """Forks of dictionary-learning read `(x - mean) * scale` with one scale, and undo both after decoding."""
    buffers = _forks_buffers(100.0)
    weights = _crosscoder_weights(**buffers)
    loaded = load_dictionary(_published(tmp_path / "fork", weights), 2, 8)
    both = torch.randn(40, 2, 8, generator=torch.Generator().manual_seed(3))
    seen = (both - buffers["activation_mean"]) * buffers["activation_global_scale"]
    raw = torch.relu(torch.einsum("nsd,sdf->nf", seen, weights["encoder.weight"]) + weights["encoder.bias"])
    active = raw * (raw * weights["decoder.weight"].norm(dim=2).sum(0) > 2)
    written = torch.einsum("nf,sfd->nsd", active, weights["decoder.weight"]) + weights["decoder.bias"]
    restored = written / buffers["activation_global_scale"] + buffers["activation_mean"]
    ours = loaded.encode(loaded.normalisation.apply(both.flatten(1)))
    torch.testing.assert_close(ours, active, rtol=1e-4, atol=1e-3)
    undone = loaded.decode(ours) / loaded.normalisation.scale + loaded.normalisation.mean
    torch.testing.assert_close(undone, restored.flatten(1), rtol=1e-4, atol=1e-4)
    again = load_dictionary(str(save_dictionary(loaded, tmp_path / "again", {})), 2, 8)
    torch.testing.assert_close(again.encode(again.normalisation.apply(both.flatten(1))), ours)
    none = {
        name: torch.full_like(value, math.nan) if value.dim() else torch.tensor(1.0) for name, value in buffers.items()
    }
    plain = load_dictionary(_published(tmp_path / "none", weights | none), 2, 8)
    assert plain.normalisation.scale == 1
    assert not plain.normalisation.mean.any()


def test_an_sae_of_a_fork_is_normalised_before_its_bias(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(4)
    weights = {
        "encoder.weight": torch.randn(16, 8, generator=generator),
        "encoder.bias": torch.randn(16, generator=generator),
    }
    weights |= {"decoder.weight": torch.randn(8, 16, generator=generator), "b_dec": torch.randn(8, generator=generator)}
    buffers = {name: value[0].clone() if value.dim() == 2 else value for name, value in _forks_buffers(3.0).items()}
    buffers["activation_global_scale"] = 3.0 / buffers["activation_std"].square().sum().sqrt()
    loaded = load_dictionary(
        _published(tmp_path / "sae", weights | buffers | {"threshold": torch.tensor(0.3), "k": torch.tensor(2)}), 1, 8
    )
    rows = torch.randn(20, 8, generator=generator)
    seen = (rows - buffers["activation_mean"]) * buffers["activation_global_scale"] - weights["b_dec"]
    raw = torch.relu(seen @ weights["encoder.weight"].T + weights["encoder.bias"])
    torch.testing.assert_close(loaded.encode(loaded.normalisation.apply(rows)), raw * (raw > 0.3), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_read_as_it_was_meant_is_refused(tmp_path: Path) -> None:
    buffers = _forks_buffers(1.0)
    each_dimension = buffers | {"activation_global_scale": torch.tensor(1.0)}
    cut = {name: value for name, value in buffers.items() if name != "activation_global_scale"}
    generator = torch.Generator().manual_seed(0)
    lens = {"W_enc": torch.randn(8, 16, generator=generator), "W_dec": torch.randn(16, 8, generator=generator)}
    lens |= {"b_enc": torch.randn(16, generator=generator), "b_dec": torch.randn(8, generator=generator)}
    jump = lens | {"threshold": torch.full((16,), 0.5)}
    for number, (weights, config, sources, said) in enumerate(
        (
            (_crosscoder_weights(**each_dimension), {}, 2, "each dimension by itself"),
            (_crosscoder_weights(**cut), {}, 2, "activation_global_scale is missing"),
            (_crosscoder_weights(threshold=torch.tensor(-1.0)), {}, 2, "no threshold"),
            (_crosscoder_weights(**{"encoder.bias": torch.zeros(5)}), {}, 2, "encoder.bias"),
            (lens, {"architecture": "topk", "k": 3}, 1, "'topk'"),
            (
                lens,
                {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}},
                1,
                "activation 'topk'",
            ),
            (lens, {"architecture": "jumprelu"}, 1, "no threshold"),
            (jump, {"architecture": "standard"}, 1, "a threshold"),
            (lens, {"architecture": "standard", "normalize_activations": "layer_norm"}, 1, "layer_norm"),
            (lens, {"architecture": "standard", "normalize_activations": "expected_average_only_in"}, 1, "folded"),
        )
    ):
        with pytest.raises(InvalidInput, match=said):
            load_dictionary(_published(tmp_path / str(number), weights, config), sources, 8)
    rows = torch.randn(20, 8, generator=generator)
    for number, subtracted in enumerate((True, False)):
        config = {"architecture": "jumprelu", "normalize_activations": "none", "apply_b_dec_to_input": subtracted}
        loaded = load_dictionary(_published(tmp_path / f"lens{number}", jump, config), 1, 8)
        raw = torch.relu((rows - subtracted * lens["b_dec"]) @ lens["W_enc"] + lens["b_enc"])
        torch.testing.assert_close(loaded.encode(rows), raw * (raw > 0.5), rtol=1e-4, atol=1e-4)


def test_a_suite_is_read_by_its_folders(tmp_path: Path) -> None:
    _published(tmp_path / "layer8", _crosscoder_weights())
    with pytest.raises(InvalidInput, match=r"no safetensors files.*layer8"):
        load_dictionary(str(tmp_path), 2, 8)
