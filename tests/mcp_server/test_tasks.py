"""The tasks extension: long work as a task for clients that have it, over the same jobs as for all others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from mcp import Client, MCPError

from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.access_tokens import Grant
from diffing_mcp.mcp_server.auth import OPERATOR, Caller
from diffing_mcp.mcp_server.serve import running_http
from diffing_mcp.mcp_server.server import _sooner_a_task
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.mcp_server.tasks import TASKS, WAIT_SECONDS
from tests.mcp_server.answers import text_of
from tests.mcp_server.task_clients import Done, Held, HeldWork, Polling, send


@pytest.fixture(params=["memory", "http"])
async def server(context: ServerContext, held_work: HeldWork, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    if request.param == "memory":
        yield held_work.server(OPERATOR)
    else:
        async with running_http(context, server=held_work.server(None)) as url:
            yield url


async def test_long_work_becomes_a_task_and_ends_as_its_result(
    server: Any, context: ServerContext, held_work: HeldWork
) -> None:
    polling = Polling()
    async with Client(server, extensions=[polling]) as client:
        waiting = asyncio.create_task(client.call_tool("held_work", {"wait_seconds": 0}))
        await polling.wait_begun(waiting)
        held_work.released.set()
        result = await waiting
        assert text_of(result).splitlines()[0] == "All done."
        assert polling.states[0] == "working"
        assert polling.states[-1] == "completed"
        # What is there already is no task.
        count = len(polling.states)
        assert text_of(await client.call_tool("held_work", {"wait_seconds": 0})).splitlines()[0] == "All done."
        assert len(polling.states) == count
    async with Client(server) as client:
        [job] = context.jobs.list(None)
        with pytest.raises(MCPError) as lacking:
            await send(client.session, "get", job.id)
        assert lacking.value.code == -32021


def test_a_call_waits_briefly_before_it_is_a_task_unless_it_says_how_long() -> None:
    assert _sooner_a_task(Held()).wait_seconds == WAIT_SECONDS  # type: ignore[attr-defined]
    assert _sooner_a_task(Held(wait_seconds=40)).wait_seconds == 40  # type: ignore[attr-defined]
    assert _sooner_a_task(Done()) == Done()


async def test_a_task_is_cancelled(context: ServerContext, held_work: HeldWork) -> None:
    async with Client(held_work.server(OPERATOR), extensions=[Polling()]) as client:
        created: Any = await client.session.call_tool("held_work", {"wait_seconds": 0}, allow_claimed=True)
        assert created.result_type == "task"
        [job] = context.jobs.list(None)
        assert created.task_id == job.id
        assert (await send(client.session, "update", job.id)).result_type == "complete"
        await send(client.session, "cancel", job.id)
        await context.jobs.wait(job, 20)
        assert (await send(client.session, "get", job.id)).status == "cancelled"
        for method in ("get", "update", "cancel"):
            with pytest.raises(MCPError, match="unknown job"):
                await send(client.session, method, "kl-00000000")


async def test_failed_work_is_a_result_with_an_error(context: ServerContext, held_work: HeldWork) -> None:
    async with Client(held_work.server(OPERATOR), extensions=[Polling()]) as client:
        created: Any = await client.session.call_tool("held_work", {"wait_seconds": 0}, allow_claimed=True)
        held_work.broken.set()
        held_work.released.set()
        await context.jobs.wait(context.jobs.list(None)[0], 20)
        state = await send(client.session, "get", created.task_id)
        assert state.status == "completed"
        assert (state.result or {})["isError"] is True
        assert "ran out of memory" in str(state.result)


async def test_a_task_of_others_is_unknown_and_none_comes_to_clients_without_them(
    context: ServerContext, held_work: HeldWork
) -> None:
    one, two = (investigations.create("cake_bake") for _ in range(2))
    async with Client(held_work.server(Caller(investigations.get(one.id)))) as client:
        started = await client.call_tool("held_work", {"wait_seconds": 0})
        assert "get_job(job_id=" in text_of(started)
        assert started.meta is None or "diffing/job" not in started.meta
    [job] = context.jobs.list(None)
    without_the_tool = Caller(grant=Grant(name="reader", tools=("list_pairs",)))
    for caller in (Caller(investigations.get(two.id)), without_the_tool):
        async with Client(held_work.server(caller), extensions=[Polling()]) as client:
            for method in ("get", "cancel"):
                with pytest.raises(MCPError, match="unknown job"):
                    await send(client.session, method, job.id)
    assert job.state in ("queued", "running")


async def test_a_routing_header_that_names_another_task_is_refused(context: ServerContext) -> None:
    async with running_http(context) as url, httpx2.AsyncClient() as web:
        meta = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {"extensions": {TASKS: {}}},
        }
        body = {"jsonrpc": "2.0", "id": 1, "method": "tasks/get", "params": {"taskId": "kl-1", "_meta": meta}}
        headers = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2026-07-28"}
        headers |= {"Mcp-Method": "tasks/get", "Mcp-Name": "kl-2"}
        answer = await web.post(url, json=body, headers=headers)
        assert "-32020" in answer.text
