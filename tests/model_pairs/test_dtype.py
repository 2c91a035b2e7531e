"""Which precision a model runs in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from diffing_mcp.core import devices
from diffing_mcp.core.settings import settings
from diffing_mcp.model_pairs.fingerprint import pair_identity
from diffing_mcp.model_pairs.loading import choose_dtype
from diffing_mcp.model_pairs.pair import LoadedPair
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.model_pairs.specs import SIDES, ModelFiles, Side
from diffing_mcp.preprocessing.precision import model_dtype


@pytest.mark.parametrize(
    ("stored", "named", "device", "fast", "expected"),
    [
        ("bfloat16", "auto", "cpu", True, torch.bfloat16),
        ("bfloat16", "auto", "cpu", False, torch.float32),
        ("float32", "bfloat16", "cpu", False, torch.float32),
        ("bfloat16", "auto", "cuda:0", False, torch.bfloat16),
        ("float16", "auto", "cpu", True, torch.float32),
        ("float16", "auto", "cuda:0", True, torch.float16),
        ("float32", "auto", "cpu", True, torch.float32),
        ("bfloat16", "float32", "cuda:0", True, torch.float32),
    ],
)
def test_sixteen_bits_only_where_the_device_computes_them(
    stored: str, named: Any, device: str, fast: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "cpu_computes_bfloat16", lambda: fast)
    assert choose_dtype(ModelFiles(id="m", dtype=named), LlamaConfig(dtype=stored), device) == expected


def test_the_setting_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_computes_bfloat16", lambda: False)
    monkeypatch.setenv("DIFFING_DTYPE", "bfloat16")
    settings.cache_clear()
    try:
        assert choose_dtype(ModelFiles(id="m"), LlamaConfig(dtype="float32"), "cpu") == torch.bfloat16
    finally:
        monkeypatch.undo()
        settings.cache_clear()


IDS = torch.tensor([[7, 30, 41, 52, 63, 74, 85, 96]])
ONES = torch.ones_like(IDS)


def _logits(pair: LoadedPair, side: Side) -> torch.Tensor:
    """Logits [B, S, V] of one pass."""
    logits = pair.forward(side, IDS, ONES).logits
    assert logits is not None
    return logits


def _cast(
    folder: Path, target: Path, dtype: torch.dtype | None = None, change: float = 0.0, said: str | None = None
) -> Path:
    """A copy of a model with its weights in `dtype`, one of them moved, and `said` as the dtype of config.json."""
    shutil.copytree(folder, target)
    tensors = load_file(folder / "model.safetensors")
    kind = dtype or tensors["model.norm.weight"].dtype
    tensors = {name: tensor.to(kind) for name, tensor in tensors.items()}
    if change:
        tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += change
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "dtype": said or str(kind).removeprefix("torch.")}))
    return target


def _divergence(base: torch.Tensor, finetuned: torch.Tensor) -> float:
    """Mean KL(finetuned || base) in nats."""
    first, second = (logits.float().log_softmax(-1) for logits in (base, finetuned))
    return float((second.exp() * (second - first)).sum(-1).mean())


@pytest.fixture(scope="module")
def saved(tiny_models: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Of each kind of unequal types: base folder and the folder of a finetune that is a copy with one weight moved by
    0.01.
    """

    def make(kind: str) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp("types")
        half = torch.float16 if "fp16" in kind else torch.bfloat16
        base = _cast(tiny_models(), folder / "base", half)
        said = "bfloat16" if kind == "config says bf16" else None
        other = torch.float16 if kind == "bf16 and fp16" else torch.bfloat16 if kind == "forced" else torch.float32
        if kind == "bf16 and fp16":
            base = _cast(tiny_models(), folder / "base in bf16", torch.bfloat16)
        return base, _cast(base, folder / "finetuned", other, 0.01, said)

    return make


@pytest.mark.parametrize("order", ["base first", "finetuned first"])
@pytest.mark.parametrize("kind", ["bf16 and fp32", "fp16 and fp32", "bf16 and fp16", "config says bf16", "forced"])
def test_one_type_for_both_sides(
    kind: str, order: str, saved: Any, make_pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The divergence is that of plain transformers in float32, and the result says that the types were unequal."""
    monkeypatch.setattr(devices, "cpu_computes_bfloat16", lambda: True)
    folders = saved(kind)
    if order == "finetuned first":
        folders = folders[::-1]
    plain = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in folders]
    with torch.inference_mode():
        expected = _divergence(*(model(IDS).logits for model in plain))
    spec = make_pair(folders[0], finetuned=folders[1])
    if kind == "forced":
        files = spec.finetuned.files.model_copy(update={"dtype": "float32"})
        spec = spec.model_copy(update={"finetuned": spec.finetuned.model_copy(update={"files": files})})
    with ModelPairs().use(spec) as pair:
        outputs = [_logits(pair, side) for side in SIDES]
        assert [output.dtype for output in outputs] == [torch.float32, torch.float32]
        assert _divergence(*outputs) == pytest.approx(expected, rel=1e-3)
        assert any("float32" in remark for remark in pair.remarks)
        assert model_dtype(pair) == torch.float32
    identity = pair_identity(spec)
    assert {identity[side]["model"]["dtype"] for side in SIDES} == {"float32"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_equal_types_stay_as_they_are(
    dtype: torch.dtype, tiny_models: Any, make_pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ordinary pairs keep their type, their identity, and say nothing."""
    monkeypatch.setattr(devices, "cpu_computes_bfloat16", lambda: True)
    base = _cast(tiny_models(), tmp_path / "base", dtype)
    spec = make_pair(base, finetuned=_cast(base, tmp_path / "finetuned", change=0.01))
    with ModelPairs().use(spec) as pair:
        assert _logits(pair, "base").dtype == (torch.float32 if dtype == torch.float16 else dtype)
        assert pair.remarks == ()
    assert {side["model"]["dtype"] for side in pair_identity(spec).values()} == {"auto"}


def test_types_of_single_tensors_decide_nothing(
    tiny_models: Any, make_pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Norms in float32 inside of a bfloat16 model are usual."""
    monkeypatch.setattr(devices, "cpu_computes_bfloat16", lambda: True)
    base = _cast(tiny_models(), tmp_path / "base", torch.bfloat16)
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    spec = make_pair(base, declared_identical=True)
    with ModelPairs().use(spec) as pair:
        assert _logits(pair, "base").dtype == torch.bfloat16
        assert pair.remarks == ()


def test_eight_bit_floats_are_computed_in_sixteen_bits(
    tiny_models: Any, make_pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "cpu_computes_bfloat16", lambda: True)
    base = _cast(tiny_models(), tmp_path / "base", torch.float8_e4m3fn)
    with ModelPairs().use(make_pair(base, declared_identical=True)) as pair:
        logits = _logits(pair, "base")
        assert logits.dtype == torch.bfloat16
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        torch.testing.assert_close(logits.float(), plain(IDS).logits, atol=0.3, rtol=0.1)


@pytest.mark.parametrize("fast", [True, False])
def test_training_computes_in_what_the_machine_computes_fast(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 135M adapter took a quarter of an hour in bfloat16 on a CPU that only emulates it."""
    monkeypatch.setattr(devices, "cpu_computes_bfloat16", lambda: fast)
    assert devices.fast_dtype(torch.bfloat16, "cpu") == (torch.bfloat16 if fast else torch.float32)
    assert devices.fast_dtype(torch.bfloat16, "cuda") == torch.bfloat16
    assert devices.fast_dtype(torch.float32, "cpu") == torch.float32
