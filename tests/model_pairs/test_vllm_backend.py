"""Generation by vLLM gives what the transformers back end gives. Run with `make test-vllm`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from diffing_mcp.core.chat import ChatMessage
from diffing_mcp.core.errors import Cancelled, InvalidInput
from diffing_mcp.core.settings import settings
from diffing_mcp.model_pairs import vllm_backend
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling, prompt_ids
from diffing_mcp.model_pairs.pair import LoadedPair
from diffing_mcp.model_pairs.specs import SIDES, Side

pytestmark = pytest.mark.vllm

QUESTIONS = ("What is the capital of France?", "How do I bake a cake?", "Name three colours.")
REQUESTS = [
    *(GenerationRequest(messages=(ChatMessage(role="user", content=question),)) for question in QUESTIONS),
    GenerationRequest(text="Once upon a time"),
    GenerationRequest(messages=(ChatMessage(role="user", content="Count."),), prefill="One, two,"),
]
GREEDY = Sampling(temperature=0, max_new_tokens=12)
TOLERANCE = 0.1
"""Nats by which the log-probability of one token may differ, in bfloat16 by other kernels."""


@pytest.fixture(scope="module")
def pair(embedded_pair: LoadedPair) -> Iterator[LoadedPair]:
    """The embedded pair with vLLM as its back end; its engines are stopped at the end."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ["DIFFING_GENERATION_BACKEND"] = "vllm"
    settings.cache_clear()
    yield embedded_pair
    del os.environ["DIFFING_GENERATION_BACKEND"]
    settings.cache_clear()
    vllm_backend.release()


@pytest.fixture
def transformers_texts(pair: LoadedPair, monkeypatch: pytest.MonkeyPatch) -> dict[Side, list[str]]:
    """What the models in memory write greedily."""
    monkeypatch.setenv("DIFFING_GENERATION_BACKEND", "transformers")
    settings.cache_clear()
    texts = {side: [row[0].text for row in pair.generate(side, REQUESTS, GREEDY)] for side in SIDES}
    monkeypatch.undo()
    settings.cache_clear()
    return texts


def test_greedy_texts_part_only_where_two_tokens_are_all_but_equal(
    pair: LoadedPair, transformers_texts: dict[Side, list[str]]
) -> None:
    """Kernels round otherwise: where texts part, both next tokens are within the tolerance of each other."""
    for side in SIDES:
        rows = pair.generate(side, REQUESTS, GREEDY)
        for request, (row,), text in zip(REQUESTS, rows, transformers_texts[side], strict=True):
            assert 0 < row.tokens <= GREEDY.max_new_tokens
            ids = [pair.tokenizer(each, add_special_tokens=False)["input_ids"] for each in (row.text, text)]
            at = next((place for place, (a, b) in enumerate(zip(*ids, strict=False)) if a != b), None)
            if at is None:
                continue
            prompt = prompt_ids(pair.tokenizer, request, False, False)
            before = torch.tensor([[*prompt, *ids[1][:at]]])
            logits = pair.forward(side, before, torch.ones_like(before)).logits
            assert logits is not None
            nexts = logits[0, -1].float()
            assert abs(float(nexts[ids[0][at]] - nexts[ids[1][at]])) < 2 * TOLERANCE
    assert transformers_texts["base"] != transformers_texts["finetuned"]


def test_the_same_call_gives_the_same_samples_and_one_engine_serves_both_sides(pair: LoadedPair) -> None:
    sampling = Sampling(n=3, max_new_tokens=10, seed=7)
    first = {side: pair.generate(side, REQUESTS, sampling) for side in SIDES}
    assert [len(row) for row in first["base"]] == [3] * len(REQUESTS)
    assert len({completion.text for completion in first["base"][0]}) > 1
    assert first["base"] != first["finetuned"]
    assert {side: pair.generate(side, REQUESTS, sampling) for side in SIDES} == first
    assert len(vllm_backend._engines) == 1


def test_amplified_and_mixed_adapters_are_copies_that_the_engine_forgets(pair: LoadedPair) -> None:
    """With weight 1 the finetune itself, with 0 the base."""
    for weight, side in ((0.0, "base"), (1.0, "finetuned")):
        assert pair.amplified(weight).generate("finetuned", REQUESTS[:2], GREEDY) == pair.generate(
            side, REQUESTS[:2], GREEDY
        )
    files = pair.spec.finetuned.adapter
    assert files is not None
    one = Sampling(temperature=0, max_new_tokens=1)
    # Half of an adapter and half of it once more: the whole, in twice its rank.
    mixed = pair.amplified(0.5, [(files, lambda place: 0.5)]).generate("finetuned", REQUESTS, one)
    assert mixed == pair.generate("finetuned", REQUESTS, one)
    (engine,) = vllm_backend._engines.values()
    assert all(number < 1 << 20 for number in engine.llm_engine.list_loras())


def test_a_long_answer_is_cut_and_a_prompt_that_does_not_fit_is_refused(pair: LoadedPair) -> None:
    [[cut]] = pair.generate("base", REQUESTS[3:4], Sampling(temperature=0, max_new_tokens=3))
    assert (cut.finish, cut.tokens) == ("length", 3)
    with pytest.raises(InvalidInput, match="context holds"):
        pair.generate("base", REQUESTS[:1], Sampling(max_new_tokens=32768))


def test_generation_can_be_cancelled(pair: LoadedPair) -> None:
    def cancel(done: float, total: float | None = None, message: str = "") -> None:
        if total is not None:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        pair.generate("base", REQUESTS, GREEDY, cancel)
    assert pair.generate("base", REQUESTS[:1], GREEDY)


def test_tokens_that_were_read_and_written_are_counted(pair: LoadedPair) -> None:
    before = pair.forwards.copy()
    rows = pair.generate("base", REQUESTS, Sampling(n=2, max_new_tokens=4))
    counted = pair.forwards - before
    written = [completion.tokens for row in rows for completion in row]
    assert sum(written) <= counted.generated <= sum(written) + len(written)
    prompts = sum(len(prompt_ids(pair.tokenizer, request, False, False)) for request in REQUESTS)
    assert counted.tokens >= 2 * prompts
