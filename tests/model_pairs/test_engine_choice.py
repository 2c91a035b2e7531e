"""What goes to an engine of vLLM, how, and in which type; without one. `test_vllm_backend.py` runs the engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffing_mcp.core.settings import settings
from diffing_mcp.model_pairs.adapter_files import read_adapter
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
from diffing_mcp.model_pairs.mixed_lora import mixed_lora
from diffing_mcp.model_pairs.pair import LoadedPair
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.model_pairs.specs import AdapterFiles, PairSpec
from diffing_mcp.model_pairs.vllm_backend import engine_model, takes_as_stored
from tests.conftest import TinyAdapters, TinyModels

IDS = torch.arange(5, 25)[None]
REQUESTS, SAMPLING = [GenerationRequest(text="rivers run")], Sampling(temperature=0, max_new_tokens=3)
PATTERNS = {
    "rank_pattern": {"q_proj": 8},
    "alpha_pattern": {"down_proj": 64, "q_proj": 4},
}


@pytest.fixture
def vllm_is_set(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DIFFING_GENERATION_BACKEND", "vllm")
    settings.cache_clear()
    yield
    monkeypatch.undo()
    settings.cache_clear()


def logits(pair: LoadedPair) -> torch.Tensor:
    found = pair.forward("finetuned", IDS, torch.ones_like(IDS)).logits
    assert found is not None
    return found


def test_a_scaling_for_some_modules_is_folded_into_a_copy(
    tiny_models: TinyModels, tiny_adapters: TinyAdapters, make_pair: Callable[..., PairSpec], pairs: ModelPairs
) -> None:
    """Engines read `r` and `lora_alpha` alone."""
    base = tiny_models()
    adapter = tiny_adapters(base, seed=5, **PATTERNS)
    assert not read_adapter(adapter).has_one_scaling
    with pairs.use(make_pair(base, adapter=adapter)) as pair:
        assert takes_as_stored(pair.spec.base)
        assert not takes_as_stored(pair.spec.finetuned)
        mixture = mixed_lora(pair.sides["finetuned"])
        assert mixture is not None
        with mixture.folder() as folder:
            assert read_adapter(folder).has_one_scaling
            copied = logits(pair.with_adapter(AdapterFiles(id=str(folder))))
        assert torch.allclose(copied, logits(pair), atol=2e-4)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}])
def test_plain_adapters_go_as_they_are(tiny_models: TinyModels, tiny_adapters: TinyAdapters, options: dict) -> None:
    assert read_adapter(tiny_adapters(tiny_models(), **options)).has_one_scaling


@pytest.mark.parametrize("options", [{"use_dora": True}, {"targets": ["embed_tokens", "q_proj"]}])
def test_what_is_more_than_plain_lora_stays_here(
    options: dict,
    tiny_models: TinyModels,
    tiny_adapters: TinyAdapters,
    make_pair: Callable[..., PairSpec],
    pairs: ModelPairs,
    vllm_is_set: None,
) -> None:
    """An engine refuses it with an error of its own."""
    base = tiny_models()
    with pairs.use(make_pair(base, adapter=tiny_adapters(base, seed=6, **options))) as pair:
        assert pair.generate("finetuned", REQUESTS, SAMPLING)[0][0].tokens > 0


def test_an_engine_runs_in_the_type_of_the_pair(
    tiny_models: TinyModels, make_pair: Callable[..., PairSpec], pairs: ModelPairs
) -> None:
    """Left to itself an engine takes float16 for float32 files, and each side its own."""
    spec = make_pair(tiny_models(), finetuned=tiny_models(seed=1, dtype="bfloat16"))
    with pairs.use(spec) as pair:
        models = [engine_model(pair, source) for source in (spec.base, spec.finetuned)]
    assert {model.dtype for model in models} == {torch.float32}


def test_a_model_that_is_written_again_gets_another_engine(
    tiny_models: TinyModels, make_pair: Callable[..., PairSpec], pairs: ModelPairs
) -> None:
    base, finetuned = tiny_models(), tiny_models(seed=2, change=lambda model: None)
    spec = make_pair(base, finetuned=finetuned)
    with pairs.use(spec) as pair:
        before = engine_model(pair, spec.finetuned)
        assert engine_model(pair, spec.finetuned) == before
        weights = Path(finetuned) / "model.safetensors"
        os.utime(weights, ns=(weights.stat().st_atime_ns, weights.stat().st_mtime_ns + 10**9))
        after = engine_model(pair, spec.finetuned)
    assert after != before
    assert replace(before, state=after.state) == after
