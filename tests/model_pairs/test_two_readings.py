"""A place that holds a model and an adapter: never guessed, and each reading is what plain transformers
and peft give.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.model_pairs import resolve
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.model_pairs.resolve import resolve_pair

IDS = torch.tensor([[7, 30, 41, 52, 63, 74]])
ONES = torch.ones_like(IDS)


@pytest.fixture(scope="module")
def both(tiny_models: Any, tiny_adapters: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A base model, a folder with another model and an adapter beside it, and that other model alone."""
    base, model = tiny_models(), tiny_models(seed=1)
    folder = shutil.copytree(model, tmp_path_factory.mktemp("both") / "place")
    for file in tiny_adapters(base, scale=0.3).glob("adapter_*"):
        shutil.copy(file, folder)
    return base, folder, model


def _logits(folder: Path, adapter: Path | None = None) -> torch.Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    with torch.inference_mode():
        return model.eval()(IDS).logits


def test_both_readings_are_asked_for(both: tuple[Path, Path, Path]) -> None:
    base, folder, _ = both
    for text in (f"{base}::{folder}", f"{folder}::{base}", f"{folder}::{folder}"):
        with pytest.raises(InvalidInput, match=r"#model.*#adapter"):
            resolve_pair(text)


def test_each_reading_is_the_true_one(both: tuple[Path, Path, Path]) -> None:
    base, folder, model = both
    pairs = ModelPairs()
    with pairs.use(resolve_pair(f"{base}::{folder}#model")) as pair:
        torch.testing.assert_close(pair.forward("base", IDS, ONES).logits, _logits(base))
        torch.testing.assert_close(pair.forward("finetuned", IDS, ONES).logits, _logits(model))
    with pairs.use(resolve_pair(f"{base}::{folder}#adapter")) as pair:
        torch.testing.assert_close(
            pair.forward("finetuned", IDS, ONES).logits, _logits(base, folder), atol=1e-4, rtol=1e-4
        )
    with pairs.use(resolve_pair(f"{folder}#model::{folder}#adapter")) as pair:
        torch.testing.assert_close(pair.forward("base", IDS, ONES).logits, _logits(model))
        torch.testing.assert_close(
            pair.forward("finetuned", IDS, ONES).logits, _logits(model, folder), atol=1e-4, rtol=1e-4
        )


def test_a_reading_that_is_not_there(both: tuple[Path, Path, Path], tiny_adapters: Any) -> None:
    base, _, model = both
    with pytest.raises(InvalidInput, match="holds no adapter, only a model"):
        resolve_pair(f"{base}::{model}#adapter")
    with pytest.raises(InvalidInput, match="holds no model, only an adapter"):
        resolve_pair(f"{base}::{tiny_adapters(base)}#model")
    assert resolve_pair(f"{base}#model::{model}#model").finetuned.files.id == str(model)


def test_leftovers_are_no_second_reading(both: tuple[Path, Path, Path], tiny_adapters: Any, tmp_path: Path) -> None:
    """The configuration of an adapter without its weights beside a model, and that of a model beside an adapter."""
    base, folder, model = both
    left = shutil.copytree(folder, tmp_path / "model")
    (left / "adapter_model.safetensors").unlink()
    with ModelPairs().use(resolve_pair(f"{base}::{left}")) as pair:
        torch.testing.assert_close(pair.forward("finetuned", IDS, ONES).logits, _logits(model))
    adapter = shutil.copytree(tiny_adapters(base), tmp_path / "adapter")
    shutil.copy(base / "config.json", adapter)
    assert resolve_pair(f"{base}::{adapter}").finetuned.adapter is not None


def test_hub_repositories_that_hold_both(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [
        "config.json",
        "model.safetensors",
        "adapter_config.json",
        "adapter_model.safetensors",
        "run/adapter_config.json",
        "run/adapter_model.bin",
    ]

    class Hub:
        def list_repo_files(self, identifier: str) -> list[str]:
            return files

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    resolve._hub_held.cache_clear()
    try:
        with pytest.raises(InvalidInput, match="some/both#model"):
            resolve_pair("smollm2-135m::some/both")
        assert resolve_pair("smollm2-135m::some/both#adapter").finetuned.adapter is not None
        full = resolve_pair("smollm2-135m::some/both#model").finetuned
        assert (full.adapter, full.files.id) == (None, "some/both")
        assert resolve_pair("smollm2-135m::some/both//run").finetuned.adapter is not None
    finally:
        resolve._hub_held.cache_clear()


def test_the_mark_is_part_of_no_other_name(tiny_models: Any, tmp_path: Path) -> None:
    """A folder whose own name ends like a mark is given with one more."""
    folder = shutil.copytree(tiny_models(), tmp_path / "odd#model")
    spec = resolve_pair(f"{tiny_models(seed=1)}::{folder}#model")
    assert json.loads((Path(spec.finetuned.files.id) / "config.json").read_text())["model_type"] == "llama"
    assert Path(spec.finetuned.files.id).name == "odd#model"
