"""Engines of vLLM begin, end and are spread over devices; vLLM is played. `test_vllm_backend.py` runs the real one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from diffing_mcp.core.settings import settings
from diffing_mcp.model_pairs import vllm_backend
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
from diffing_mcp.model_pairs.pair import LoadedPair
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.model_pairs.specs import PairSpec
from diffing_mcp.model_pairs.vllm_backend import EngineEnded
from tests.conftest import TinyAdapters, TinyModels

REQUESTS, SAMPLING = [GenerationRequest(text="rivers run")], Sampling(temperature=0, max_new_tokens=3)


class Engine:
    """What `vllm.LLM` offers, as far as it is used."""

    running: list[Engine]

    def __init__(self, **options: Any) -> None:
        self.options, self.dead = options, False
        config = SimpleNamespace(
            lora_config=SimpleNamespace(max_lora_rank=options["max_lora_rank"]),
            model_config=SimpleNamespace(max_model_len=options["max_model_len"]),
        )
        self.llm_engine = SimpleNamespace(vllm_config=config, remove_lora=lambda number: self._alive())
        self.running.append(self)

    def _alive(self) -> None:
        if self.dead:
            raise RuntimeError("EngineCore encountered an issue")

    def generate(self, prompts: list[Any], parameters: list[Any], **options: Any) -> list[Any]:
        self._alive()
        written = SimpleNamespace(token_ids=[5, 6, 7], finish_reason="length")
        return [SimpleNamespace(outputs=[written]) for _ in prompts]


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Engine]]:
    """All that were started."""
    Engine.running = []

    def module(name: str, **contents: Any) -> None:
        made = ModuleType(name)
        vars(made).update(contents)
        monkeypatch.setitem(sys.modules, name, made)

    module("vllm", LLM=Engine, SamplingParams=SimpleNamespace)
    module("vllm.inputs", TokensPrompt=SimpleNamespace)
    module("vllm.lora")
    module("vllm.lora.request", LoRARequest=lambda *given: given)
    monkeypatch.setenv("DIFFING_GENERATION_BACKEND", "vllm")
    settings.cache_clear()
    yield Engine.running
    vllm_backend.release()
    monkeypatch.undo()
    settings.cache_clear()


def test_an_engine_that_dies_is_told_of_and_another_is_started(
    tiny_models: TinyModels,
    tiny_adapters: TinyAdapters,
    make_pair: Callable[..., PairSpec],
    pairs: ModelPairs,
    engines: list[Engine],
) -> None:
    """One crash must not fail every call of the night."""
    base = tiny_models()
    with pairs.use(make_pair(base, adapter=tiny_adapters(base))) as pair:
        for asked in (pair, pair.amplified(0.5)):
            assert asked.generate("finetuned", REQUESTS, SAMPLING)[0][0].tokens == 3
            engines[-1].dead = True
            with pytest.raises(EngineEnded, match="Call again: another is started"):
                asked.generate("finetuned", REQUESTS, SAMPLING)
    assert len(engines) == 2


def test_no_more_engines_run_than_there_is_room_for(
    tiny_models: TinyModels, make_pair: Callable[..., PairSpec], pairs: ModelPairs, engines: list[Engine]
) -> None:
    """Each takes two fifths of a GPU: the third of a batch of full models would find no place."""
    base, finetunes = tiny_models(), [tiny_models(seed=seed) for seed in (1, 2)]
    for finetuned in finetunes:
        with pairs.use(make_pair(base, finetuned=finetuned)) as pair:
            for _ in range(2):
                pair.generate("finetuned", REQUESTS, SAMPLING)
                pair.generate("base", REQUESTS, SAMPLING)
    assert [Path(engine.options["model"]) for engine in engines] == [finetunes[0], base, finetunes[1]]
    assert len(vllm_backend._engines) == 2


@pytest.mark.parametrize(("heads", "kept", "parts"), [(4, 4, 4), (4, 2, 4), (2, 1, 2)])
def test_an_engine_is_spread_over_as_many_devices_as_its_heads_can_be(
    heads: int,
    kept: int,
    parts: int,
    tiny_models: TinyModels,
    make_pair: Callable[..., PairSpec],
    pairs: ModelPairs,
    engines: list[Engine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """28 heads on eight GPUs are no error, but four parts."""
    model = tiny_models(num_attention_heads=heads, num_key_value_heads=kept)
    with pairs.use(make_pair(model, finetuned=tiny_models(seed=1))) as pair:
        spread: LoadedPair = replace(pair, device=torch.device("cuda:0"))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 7)
        spread.generate("base", REQUESTS, SAMPLING)
    assert engines[0].options["tensor_parallel_size"] == parts
