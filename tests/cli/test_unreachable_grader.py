"""A grader model that does not answer: one line that says so, and what was found without it is kept."""

from __future__ import annotations

import asyncio
import json

import pytest
from tenacity import wait_none

from diffing_mcp.agents.server_process import free_port
from diffing_mcp.graders.replies import GradingFailed
from tests.agents.llm_server import KEY, BadRequest, Conversation, Turn, llm_server
from tests.cli.conftest import Diffing
from tests.cli.planted_runs import contrastive_run, patchscope_run

pytest.importorskip("inspect_ai")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the test's model; without one Inspect does not even ask."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("diffing_mcp.agents.llm.RETRIES", 0)


def refuse(conversation: Conversation) -> Turn:
    raise BadRequest("this model is not served here")


def test_a_server_that_is_down(diffing: Diffing) -> None:
    run, texts = (
        patchscope_run({1.0: [" cake", " oven"]}, scale=1.0).id,
        contrastive_run({1.0: ["On and on."], -2.0: ["Off."]}).id,
    )
    address = f"http://127.0.0.1:{free_port()}/v1"
    options = ("--grader", "openai/gpt-test", "--grader-url", address, "--json")
    judged = diffing("judge", run, texts, *options)
    assert judged.code == 2
    assert f"openai/gpt-test' at {address} gave no answer" in judged.err
    assert "Traceback" not in judged.err
    scope, wrote = json.loads(judged.out)
    assert (scope["scales"][0]["chosen"], scope["scales"][0]["by_model"]) == (1.0, None)
    assert (wrote["series"][0]["largest"], wrote["series"][0]["agree"]) == (1.0, None)
    relevant = diffing("relevance", run, *options)
    assert address in relevant.err
    assert "Traceback" not in relevant.err
    [row] = json.loads(relevant.out)
    assert (row["share"], row["by_model"]) == (1.0, None)


def test_a_server_that_refuses(diffing: Diffing) -> None:
    run = patchscope_run({1.0: [" cake", " oven"]}, scale=1.0).id
    with llm_server(refuse) as server:
        judged = diffing("judge", run, "--grader", "openai/gpt-test", "--grader-url", server.openai_url)
    assert judged.code == 2
    assert "this model is not served here" in judged.err
    assert "Traceback" not in judged.err


def test_after_a_failure_the_next_question_is_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffing_mcp.agents.llm import ask_with

    monkeypatch.setattr("diffing_mcp.agents.llm.RETRIES", 1)
    monkeypatch.setattr("inspect_ai.model._retry.wait_exponential_jitter", lambda **_: wait_none())
    out_of_order, asked = True, []

    def policy(conversation: Conversation) -> Turn:
        asked.append(conversation)
        if out_of_order:
            raise RuntimeError("out of order")
        return Turn("assistant", "back again")

    async def questions(address: str) -> None:
        nonlocal out_of_order
        ask, question = ask_with("openai/gpt-test", address), [{"role": "user", "content": "Well?"}]
        with pytest.raises(GradingFailed):
            await ask(question)
        first = len(asked)
        with pytest.raises(GradingFailed):
            await ask(question)
        assert 2 * (len(asked) - first) == first
        out_of_order = False
        assert await ask(question) == "back again"

    with llm_server(policy) as server:
        asyncio.run(questions(server.openai_url))
