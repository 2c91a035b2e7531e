"""The same client against a real OpenAI-compatible server: vLLM with the embedded model. Run with `-m vllm` where vLLM
is installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from diffing_mcp.agents.llm import ask_with
from diffing_mcp.agents.records import EvaluationFolder, EvaluationPlan
from diffing_mcp.agents.server_process import free_port

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def vllm_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from diffing_mcp.organisms.embedded import embedded_model_folder

    port = free_port()
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(embedded_model_folder()),
        "--served-model-name",
        "embedded",
    ]
    command += [
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--dtype",
        "bfloat16",
        "--max-model-len",
        "8192",
        "--enforce-eager",
    ]
    command += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        deadline = time.monotonic() + 600
        while True:
            assert process.poll() is None, log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < deadline, "vLLM did not start"
            try:
                if httpx2.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200:
                    break
            except (OSError, httpx2.TransportError):
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


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
