"""Answers as far as they are written: shown to operators, not in investigations."""

from __future__ import annotations

from typing import Any

from mcp import Client

from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.auth import OPERATOR, Caller
from diffing_mcp.mcp_server.serve import build_server
from diffing_mcp.mcp_server.server_context import ServerContext
from tests.mcp_server.answers import answered
from tests.mcp_server.task_clients import HeldWork


async def job_of(server: Any, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    async with Client(server) as client:
        answer = (await answered(client, tool, arguments)).structured_content
    assert answer is not None
    job: dict[str, Any] = answer["job"]
    return job


async def test_an_unfinished_answer_is_shown_to_operators_only(context: ServerContext, held_work: HeldWork) -> None:
    job = await job_of(held_work.server(OPERATOR), "held_work", {"wait_seconds": 1})
    assert job["unfinished"] == [{"side": "base", "prompt": 0, "sample": 0, "model_text": "so far"}]
    blinded = Caller(investigations.get(investigations.create("cake_bake").id))
    assert (await job_of(held_work.server(blinded), "held_work", {"wait_seconds": 1}))["unfinished"] == []


async def test_answers_to_a_question_are_shown_while_they_are_written(
    context: ServerContext, pair_name: str, monkeypatch: Any
) -> None:
    from diffing_mcp.mcp_server.jobs import Job
    from diffing_mcp.model_pairs import generation

    monkeypatch.setattr(generation, "_SHOWN_EVERY_SECONDS", 0.0)
    seen: list[tuple[str, int, int]] = []
    write = Job.write

    def noted(job: Job, *what: Any) -> None:
        write(job, *what)
        seen.append(what[:3])

    monkeypatch.setattr(Job, "write", noted)
    async with Client(build_server(context)) as client:
        question = {"pair": pair_name, "prompts": ["Bake"], "samples": 2, "max_new_tokens": 4}
        answer = (await answered(client, "ask_models", question)).structured_content
        assert answer is not None
        assert len(answer["result"]["answers"][0]["base"]) == 2
        assert set(seen) == {(side, 0, sample) for side in ("base", "finetuned") for sample in range(2)}
        assert "unfinished" not in answer["result"]
        several = {**question, "samples": 32, "prompts": ["Bake", "Rain"], "max_new_tokens": 2}
        seen.clear()
        await answered(client, "ask_models", several)
        assert seen == [], "too many to look at"
