"""The tasks extension: long work as a task for clients that have it, over the same jobs as for all others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal

import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp.types import CallToolResult, Request, RequestParams, Result
from pydantic import BaseModel

from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.auth import OPERATOR, Caller
from diffing_mcp.mcp_server.call import Call
from diffing_mcp.mcp_server.declarations import Reply, ToolDeclaration, WaitArguments
from diffing_mcp.mcp_server.jobs import Job
from diffing_mcp.mcp_server.offer import Offer
from diffing_mcp.mcp_server.serve import build_server, running_http
from diffing_mcp.mcp_server.server import DiffingServer, _sooner_a_task
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.mcp_server.tasks import TASKS, WAIT_SECONDS
from diffing_mcp.mcp_server.toolset import toolset, toolsets
from tests.mcp_server.answers import text_of


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
        self.begun = asyncio.Event()
        """Set once the client was told that the work is under way; before, that it is queued."""

    def claims(self) -> Sequence[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=TaskCreated, resolve=self._resolve)]

    async def _resolve(self, created: TaskCreated, context: ClaimContext) -> CallToolResult:
        self.states.append(created.status)
        while (state := await send(context.session, "get", created.task_id)).status == "working":
            self.states.append("working")
            if str(state.status_message).endswith("%, working on it"):
                self.begun.set()
            await asyncio.sleep(0.02)
        self.states.append(str(state.status))
        return CallToolResult.model_validate(state.result)


class Done(BaseModel):
    """The result of the fixture."""


class Held(WaitArguments):
    """Arguments of the fixture: work that ends when the test lets it."""


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """Lets the work of `held_work` end."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def serving(context: ServerContext, released: threading.Event) -> Callable[[Caller | None], DiffingServer]:
    """A server with one more tool, whose work goes on until it is released."""

    async def held_work(call: Call, arguments: Held) -> Reply:
        def work(job: Job) -> Done:
            while not released.wait(0.01):
                job(1, 4, "working on it")
            if broken.is_set():
                raise MemoryError
            return Done()

        return await call.run_job("held", work, lambda call, result: Reply(result, "All done."))

    broken = threading.Event()

    def made(caller: Caller | None = OPERATOR) -> DiffingServer:
        server = build_server(context, caller)
        tool = ToolDeclaration("held_work", "Held", "Fixture.", Held, Done, held_work)
        server.offer = Offer({**toolset(), "held_work": tool}, toolsets())
        return server

    made.broken = broken  # type: ignore[attr-defined]
    return made


@pytest.fixture(params=["memory", "http"])
async def server(context: ServerContext, serving: Any, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    if request.param == "memory":
        yield serving()
    else:
        async with running_http(context, server=serving(None)) as url:
            yield url


async def test_long_work_becomes_a_task_and_ends_as_its_result(
    server: Any, context: ServerContext, released: threading.Event
) -> None:
    polling = Polling()
    async with Client(server, extensions=[polling]) as client:
        waiting = asyncio.create_task(client.call_tool("held_work", {"wait_seconds": 0}))
        begun = asyncio.create_task(polling.begun.wait())
        done, _ = await asyncio.wait({waiting, begun}, return_when=asyncio.FIRST_COMPLETED)
        assert done == {begun}
        released.set()
        result = await waiting
        assert text_of(result) == "All done."
        assert polling.states[0] == "working"
        assert polling.states[-1] == "completed"
        # What is there already is no task.
        count = len(polling.states)
        assert text_of(await client.call_tool("held_work", {"wait_seconds": 0})) == "All done."
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


async def test_a_task_is_cancelled(context: ServerContext, serving: Any) -> None:
    async with Client(serving(), extensions=[Polling()]) as client:
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


async def test_failed_work_is_a_result_with_an_error(
    context: ServerContext, serving: Any, released: threading.Event
) -> None:
    async with Client(serving(), extensions=[Polling()]) as client:
        created: Any = await client.session.call_tool("held_work", {"wait_seconds": 0}, allow_claimed=True)
        serving.broken.set()
        released.set()
        await context.jobs.wait(context.jobs.list(None)[0], 20)
        state = await send(client.session, "get", created.task_id)
        assert state.status == "completed"
        assert (state.result or {})["isError"] is True
        assert "ran out of memory" in str(state.result)


async def test_a_task_of_others_is_unknown_and_none_comes_to_clients_without_them(
    context: ServerContext, serving: Any
) -> None:
    one, two = (investigations.create("cake_bake") for _ in range(2))
    async with Client(serving(Caller(investigations.get(one.id)))) as client:
        started = await client.call_tool("held_work", {"wait_seconds": 0})
        assert "get_job(job_id=" in text_of(started)
        assert started.meta is None or "diffing/job" not in started.meta
    [job] = context.jobs.list(None)
    async with Client(serving(Caller(investigations.get(two.id))), extensions=[Polling()]) as client:
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
