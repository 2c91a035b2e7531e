"""A pair behind a real `vllm serve`, base and adapter from one server, against the same models in memory. Run with
`make test-vllm`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diffing_mcp.core.chat import ChatMessage
from diffing_mcp.model_pairs.answering import AnsweringPair
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
from diffing_mcp.model_pairs.resolve import resolve_pair
from diffing_mcp.model_pairs.specs import SIDES, Side
from tests.vllm_server import vllm_server

pytestmark = pytest.mark.vllm

TEXT = GenerationRequest(text="Once upon a time")
CHAT = GenerationRequest(messages=(ChatMessage(role="user", content="What is the capital of France?"),))
BEGUN = CHAT.model_copy(update={"prefill": "The capital of"})
TOLERANCE = 0.1
"""Nats a token by which log-probabilities may differ, in bfloat16 by other kernels, on average over an answer."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, embedded_adapter: Path, pairs: Any) -> Iterator[AnsweringPair]:
    options = ["--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"taught={embedded_adapter}"]
    # Left to itself vLLM 0.32 wraps the output layer too, and its CPU build then ends at the first scored prompt.
    modules = json.loads((embedded_adapter / "adapter_config.json").read_text())["target_modules"]
    options += ["--lora-target-modules", *modules]
    with vllm_server(tmp_path_factory.mktemp("vllm") / "server.log", options) as url:
        spec = resolve_pair(f"openai:{url}#embedded::openai:{url}#taught")
        with pairs.answering(spec) as pair:
            yield pair


@pytest.mark.parametrize("side", SIDES)
def test_answers_have_the_log_probabilities_of_the_models_in_memory(
    served: AnsweringPair, embedded_pair: Any, side: Side
) -> None:
    answers = [(TEXT, ", there was a king."), (CHAT, "Paris is the capital."), (BEGUN, " France is Paris.")]
    found, expected = served.answer_scores(side, answers), embedded_pair.answer_scores(side, answers)
    assert [each.tokens for each in found] == [each.tokens for each in expected]
    assert [each.mean for each in found] == pytest.approx([each.mean for each in expected], abs=TOLERANCE)


def test_texts_come_from_both_sides(served: AnsweringPair, embedded_pair: Any) -> None:
    greedy = Sampling(temperature=0, max_new_tokens=6)
    for side in SIDES:
        found = [row[0] for row in served.generate(side, [TEXT, CHAT, BEGUN], greedy)]
        expected = [row[0] for row in embedded_pair.generate(side, [TEXT, CHAT, BEGUN], greedy)]
        assert [each.finish for each in found] == [each.finish for each in expected]
        # The first word is far ahead of the second; later ones may be all but equal, which kernels round otherwise.
        assert [each.text.split()[:1] for each in found] == [each.text.split()[:1] for each in expected]
    sampling = Sampling(n=3, max_new_tokens=6, seed=1)
    first = served.generate("base", [TEXT], sampling)
    assert len({each.text for each in first[0]}) > 1
    assert first == served.generate("base", [TEXT], sampling)
