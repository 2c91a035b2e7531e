"""A client that polls tasks, and work that ends when the test lets it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp.types import CallToolResult, Request, RequestParams, Result
from pydantic import BaseModel

from diffing_mcp.mcp_server.auth import Caller
from diffing_mcp.mcp_server.call import Call
from diffing_mcp.mcp_server.declarations import Reply, ToolDeclaration, WaitArguments
from diffing_mcp.mcp_server.jobs import Job
from diffing_mcp.mcp_server.offer import Offer
from diffing_mcp.mcp_server.serve import build_server
from diffing_mcp.mcp_server.server import DiffingServer
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.mcp_server.tasks import TASKS
from diffing_mcp.mcp_server.toolset import toolset, toolsets


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

    async def wait_begun(self, call: asyncio.Task[Any]) -> None:
        """Until the work of a call is under way; fails when the call ends before."""
        begun = asyncio.create_task(self.begun.wait())
        done, _ = await asyncio.wait({call, begun}, return_when=asyncio.FIRST_COMPLETED)
        assert done == {begun}

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


class HeldWork:
    """Makes servers with one more tool, `held_work`, whose work goes on until `released` and fails where `broken`."""

    def __init__(self, context: ServerContext) -> None:
        self.context = context
        self.released = threading.Event()
        self.broken = threading.Event()

    def server(self, caller: Caller | None) -> DiffingServer:
        """A server for this caller; None: whoever the token says."""
        server = build_server(self.context, caller)
        tool = ToolDeclaration("held_work", "Held", "Fixture.", Held, Done, self._called)
        server.offer = Offer({**toolset(), "held_work": tool}, toolsets())
        return server

    async def _called(self, call: Call, arguments: Held) -> Reply:
        def work(job: Job) -> Done:
            while not self.released.wait(0.01):
                job.write("base", 0, 0, "so far")
                job(1, 4, "working on it")
            if self.broken.is_set():
                raise MemoryError
            return Done()

        return await call.run_job("held", work, lambda call, result: Reply(result, "All done."))
