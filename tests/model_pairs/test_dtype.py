"""Which precision a model runs in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from model_pairs import loading
from model_pairs.loading import choose_dtype
from model_pairs.specs import ModelFiles
from organisms.settings import settings


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
    monkeypatch.setattr(loading, "cpu_computes_bfloat16", lambda: fast)
    assert choose_dtype(ModelFiles(id="m", dtype=named), LlamaConfig(dtype=stored), device) == expected


def test_the_setting_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "cpu_computes_bfloat16", lambda: False)
    monkeypatch.setenv("DIFFING_DTYPE", "bfloat16")
    settings.cache_clear()
    try:
        assert choose_dtype(ModelFiles(id="m"), LlamaConfig(dtype="float32"), "cpu") == torch.bfloat16
    finally:
        monkeypatch.undo()
        settings.cache_clear()
