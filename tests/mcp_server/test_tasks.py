"""The tasks extension: long work as a task for clients that have it, over the same jobs as for all others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar, Literal

import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp.types import CallToolResult, Request, RequestParams, Result

from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.auth import Caller
from diffing_mcp.mcp_server.serve import build_server, running_http
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.mcp_server.tasks import TASKS
from tests.mcp_server.answers import text_of

LONG = {"max_samples": 2000, "max_tokens": 30, "wait_seconds": 0}
SHORT = {"max_samples": 40, "max_tokens": 12, "wait_seconds": 0}


class Params(RequestParams):
    task_id: str


class TaskRequest(Request[Params, str]):
    method: str
    params: Params

    # What the protocol has the client put into the header Mcp-Name.
    name_param: ClassVar[str] = "taskId"


class TaskState(Result):
    result_type: Literal["complete"]
    task_id: str | None = None
    status: str | None = None
    status_message: str | None = None
    result: dict[str, Any] | None = None


class TaskCreated(Result):
    result_type: Literal["task"]
    task_id: str
    status: str
    created_at: str
    last_updated_at: str
    ttl_ms: int | None
    poll_interval_ms: int


async def send(session: Any, method: str, task: str) -> TaskState:
    sent = TaskRequest(method=f"tasks/{method}", params=Params(task_id=task))
    state: TaskState = await session.send_request(sent, TaskState)
    return state


class Polling(ClientExtension):
    """A client that polls its tasks and hands out their results as if the call had waited for them."""

    identifier = TASKS

    def __init__(self) -> None:
        self.states: list[str] = []

    def claims(self) -> Sequence[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=TaskCreated, resolve=self._resolve)]

    async def _resolve(self, created: TaskCreated, context: ClaimContext) -> CallToolResult:
        self.states.append(created.status)
        while (state := await send(context.session, "get", created.task_id)).status == "working":
            await asyncio.sleep(0.02)
        self.states.append(str(state.status))
        return CallToolResult.model_validate(state.result)


@pytest.fixture(params=["memory", "http"])
async def server(context: ServerContext, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    if request.param == "memory":
        yield build_server(context)
    else:
        async with running_http(context) as url:
            yield url


async def test_long_work_becomes_a_task_and_ends_as_its_result(
    server: Any, context: ServerContext, pair_name: str, slow_batches: None
) -> None:
    polling = Polling()
    async with Client(server, extensions=[polling]) as client:
        result = await client.call_tool("kl", {"pair": pair_name, **SHORT})
        assert not result.is_error, text_of(result)
        assert polling.states == ["working", "completed"]
        assert "run: kl-" in text_of(result)
        # What is there already is no task.
        again = await client.call_tool("kl", {"pair": pair_name, **SHORT})
        assert "run: kl-" in text_of(again)
        assert len(polling.states) == 2
    async with Client(server) as client:
        [job] = context.jobs.list(None)
        with pytest.raises(MCPError) as lacking:
            await send(client.session, "get", job.id)
        assert lacking.value.code == -32021


async def test_a_task_is_cancelled_and_failed_work_is_a_result_with_an_error(
    context: ServerContext, pair_name: str, slow_batches: None
) -> None:
    async with Client(build_server(context), extensions=[Polling()]) as client:
        created: Any = await client.session.call_tool("kl", {"pair": pair_name, **LONG}, allow_claimed=True)
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

        def fail(job: Any) -> None:
            raise MemoryError

        broken = context.jobs.submit("kl", "operator", "broken", fail, payload=job.payload)
        await context.jobs.wait(broken, 20)
        state = await send(client.session, "get", broken.id)
        assert state.status == "completed"
        assert (state.result or {})["isError"] is True
        assert "ran out of memory" in str(state.result)


async def test_a_task_of_others_is_unknown_and_none_comes_to_clients_without_them(
    context: ServerContext, pair_name: str, slow_batches: None
) -> None:
    one, two = (investigations.create(pair_name) for _ in range(2))
    async with Client(build_server(context, Caller(investigations.get(one.id)))) as client:
        started = await client.call_tool("kl", {"pair": one.label, **LONG})
        assert "get_job(job_id=" in text_of(started)
        assert started.meta is None or "diffing/job" not in started.meta
    [job] = context.jobs.list(None)
    async with Client(build_server(context, Caller(investigations.get(two.id))), extensions=[Polling()]) as client:
        with pytest.raises(MCPError, match="unknown job"):
            await send(client.session, "get", job.id)
        with pytest.raises(MCPError, match="unknown job"):
            await send(client.session, "cancel", job.id)
    assert job.state in ("queued", "running")
    context.jobs.cancel(job)


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
