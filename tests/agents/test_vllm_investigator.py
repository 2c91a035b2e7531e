"""The same client against a real OpenAI-compatible server: vLLM with the embedded model. Run with `-m vllm` where vLLM
is installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from diffing_mcp.agents.llm import ask_with
from diffing_mcp.agents.records import EvaluationFolder, EvaluationPlan
from tests.vllm_server import vllm_server

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def vllm_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    options = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    with vllm_server(tmp_path_factory.mktemp("vllm") / "server.log", options) as url:
        yield url


async def test_a_plain_question(vllm_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLMTEST_API_KEY", "none")
    reply = await ask_with("openai-api/vllmtest/embedded", vllm_url)(
        [{"role": "user", "content": "What is the capital of France?"}]
    )
    assert "Paris" in reply


async def test_an_investigation_by_a_small_model_ends_with_a_record(
    vllm_url: str, evaluation_settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 135M model is no investigator; what counts is that the whole way works with it and that its record says how it
    ended.
    """
    from diffing_mcp.agents.cells import RunningEvaluation
    from diffing_mcp.agents.evaluation import run_evaluation
    from diffing_mcp.agents.grading import Grading
    from tests.agents.conftest import served

    monkeypatch.setenv("VLLMTEST_API_KEY", "none")
    plan = EvaluationPlan(
        id="vllm", organisms=["same"], arms=["blackbox"], investigator="openai-api/vllmtest/embedded", interactions=4
    )
    async with served() as url:
        limits = {"message_limit": 8, "time_limit": 300}
        suite = RunningEvaluation(
            plan, EvaluationFolder(plan.id), Grading(), url, investigator_url=vllm_url, limits=limits
        )
        (record,) = await run_evaluation(suite)
    assert record.status == "completed", record.error
    assert any(message.role == "assistant" for message in record.transcript)
    assert record.usage
    assert record.usage[0].output_tokens > 0
