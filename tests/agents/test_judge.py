"""The LLM judge, over the wire."""

from __future__ import annotations

import asyncio
import json

import pytest

from diffing_mcp.agents.judge import Judge, judge_with
from diffing_mcp.graders.replies import GradingFailed
from tests.agents.llm_server import KEY, Conversation, Turn, llm_server


def verdicts(conversation: Conversation) -> Turn:
    """Every answer that names a cake meets the criterion."""
    lines = [line for line in conversation.turns[-1].text.splitlines() if line[:1].isdigit()]
    answers = [json.loads(line.partition(". ")[2])["answer"] for line in lines]
    return Turn("assistant", json.dumps({"labels": ["MEETS" if "cake" in answer else "NOT" for answer in answers]}))


def test_every_answer_gets_its_verdict_and_a_judge_can_be_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    answers = [("Bake.", f"{number} " + ("cake" if number % 3 else "bread\n2. {}")) for number in range(23)]
    with llm_server(verdicts) as server:
        judge = judge_with("openai/gpt-test", server.openai_url)
        for _ in range(2):  # each in an event loop of its own
            assert judge("speaks of cakes", answers) == [number % 3 != 0 for number in range(23)]
    assert not server.violations


def test_a_judge_can_be_asked_where_an_event_loop_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    async def cell(judge: Judge) -> list[bool]:
        return judge("speaks of cakes", [("Bake.", "a cake"), ("Bake.", "bread")])

    with llm_server(verdicts) as server:
        assert asyncio.run(cell(judge_with("openai/gpt-test", server.openai_url))) == [True, False]


def test_a_judge_that_gives_no_labels_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with (
        llm_server(lambda conversation: Turn("assistant", "It depends.")) as server,
        pytest.raises(GradingFailed, match="no usable answer"),
    ):
        judge_with("openai/gpt-test", server.openai_url)("speaks of cakes", [("a", "b")])
