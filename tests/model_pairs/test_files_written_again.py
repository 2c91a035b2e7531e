"""Models and adapters that are trained again into the same folder while a process holds the old ones in memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffing_mcp.core.errors import NotTheSame
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunStore
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.model_pairs.resolve import resolve_pair
from tests.model_pairs.adapter_draws import Draw, peft_log_probs, save_adapter

TEXT = [7, 30, 41, 5, 63, 74, 100, 9, 12, 200]
IDS = torch.tensor([TEXT])


def rewrite(source: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(source, place)


def log_probs(pair: Any) -> torch.Tensor:
    return pair.forward("finetuned", IDS, torch.ones_like(IDS)).logits[0].log_softmax(-1)


def test_a_full_model_is_read_again(tiny_models: Callable[..., Path], own_data_folder: Path, tmp_path: Path) -> None:
    base, place, pairs = tiny_models(), tmp_path / "finetuned", ModelPairs()
    digests = []
    for seed in (1, 2):
        rewrite(tiny_models(seed=seed), place)
        (record,) = run_methods(
            pairs, resolve_pair(f"{base}::{place}"), [("kl", {"max_samples": 4})], RunStore(own_data_folder / "runs")
        )
        digests.append(record.manifest.notes["weights"]["finetuned"])
        with pairs.use(resolve_pair(f"{base}::{place}")) as pair:
            torch.testing.assert_close(log_probs(pair), peft_log_probs(place, None, [TEXT])[0], atol=1e-4, rtol=1e-4)
    assert digests[0] != digests[1]
    assert len(pairs.models.status()) == 2  # the old one is let go


@pytest.mark.parametrize("kind", ["LORA", "IA3"])
def test_an_adapter_is_read_again(
    kind: str, tiny_models: Callable[..., Path], make_pair: Callable[..., Any], tmp_path: Path
) -> None:
    base, place, pairs = tiny_models(tie_word_embeddings=True), tmp_path / "adapter", ModelPairs()
    options = {"target_modules": ["q_proj", "v_proj"]} | ({"feedforward_modules": []} if kind == "IA3" else {})
    for seed in (1, 2):
        shutil.rmtree(place, ignore_errors=True)
        save_adapter(Draw("llama", True, kind, options), base, place, seed)
        with pairs.use(make_pair(base, adapter=place)) as pair:
            torch.testing.assert_close(log_probs(pair), peft_log_probs(base, place, [TEXT])[0], atol=1e-4, rtol=1e-4)


def test_what_is_written_while_a_pair_is_in_use_is_never_half_old(
    tiny_models: Callable[..., Path], make_pair: Callable[..., Any], tmp_path: Path
) -> None:
    from diffing_mcp.model_pairs.specs import AdapterFiles

    base, place, pairs = tiny_models(tie_word_embeddings=True), tmp_path / "adapter", ModelPairs()
    options = {"target_modules": ["q_proj"], "r": 2}
    save_adapter(Draw("llama", True, "LORA", options), base, place, 1)
    with pairs.use(make_pair(base, declared_identical=True)) as pair:
        other = pair.with_adapter(AdapterFiles(id=str(place)))
        shutil.rmtree(place)
        save_adapter(Draw("llama", True, "LORA", options), base, place, 2)
        with pytest.raises(NotTheSame, match="written while this pair was in use"):
            log_probs(other)
        torch.testing.assert_close(
            log_probs(pair.with_adapter(AdapterFiles(id=str(place)))),
            peft_log_probs(base, place, [TEXT])[0],
            atol=1e-4,
            rtol=1e-4,
        )
