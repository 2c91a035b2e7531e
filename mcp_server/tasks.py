"""The tasks extension over the same jobs: a client that has it gets, for work that goes on, a task to poll in place of
a text that says to call get_job. A task's id is the job's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.extension import Extension, MethodBinding
from mcp.server.mcpserver import require_client_extension
from mcp.shared.exceptions import MCPError
from mcp.types import (
    HEADER_MISMATCH,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    RequestParams,
)

from diffing_mcp.core.errors import UnknownName
from diffing_mcp.core.wire import JOB
from diffing_mcp.mcp_server.jobs import LIVE, Job, Jobs

Request = ServerRequestContext[Any, Any]

TASKS = "io.modelcontextprotocol/tasks"
REVISIONS = frozenset({"2026-07-28"})
POLL_MILLISECONDS = 2000
WAIT_SECONDS = 5.0
"""How long a call waits for its work before it becomes a task, when its arguments do not say."""

Status = Literal["working", "completed", "cancelled"]


class TaskParams(RequestParams):
    """Which task is meant."""

    task_id: str


class Tasks(Extension):
    """Registers `tasks/get`, `tasks/update` and `tasks/cancel`.

    Args:
        jobs: the server's jobs.
        find: a job that the sender of the request being served may see, by its id; raises UnknownName.
        message: a job's progress message as that sender may read it.
        result: the answer that a job stands for, as the tool that started it would give it.
    """

    identifier = TASKS

    def __init__(
        self,
        jobs: Jobs,
        find: Callable[[str], Job],
        message: Callable[[str], str],
        result: Callable[[Request, str], Awaitable[HandlerResult]],
    ) -> None:
        self._jobs = jobs
        self._find = find
        self._message = message
        self._result = result

    def methods(self) -> Sequence[MethodBinding]:
        return [
            MethodBinding(f"tasks/{name}", TaskParams, handler, REVISIONS)
            for name, handler in (("get", self._get), ("update", self._update), ("cancel", self._cancel))
        ]

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: Request, call_next: CallNext
    ) -> HandlerResult:
        """A task for a call whose work goes on after it waited, where the client has this extension."""
        result = await call_next(ctx)
        identifier = (result.meta or {}).get(JOB) if isinstance(result, CallToolResult) else None
        if identifier is None:
            return result
        return {**self._state(self._job(ctx, identifier)), "resultType": "task"}

    def _job(self, context: Request, identifier: str) -> Job:
        """
        Raises:
            MCPError: the client lacks the extension, the routing header names another task, or there is none such.
        """
        require_client_extension(context, TASKS)
        named = getattr(context.request, "headers", {}).get("mcp-name")
        if context.method.startswith("tasks/") and named is not None and named != identifier:
            raise MCPError(HEADER_MISMATCH, f"the header Mcp-Name names {named!r}, the request {identifier!r}")
        try:
            return self._find(identifier)
        except UnknownName as error:
            raise MCPError(INVALID_PARAMS, error.message) from None

    def _state(self, job: Job) -> dict[str, Any]:
        status: Status = "working" if job.state in LIVE else "cancelled" if job.state == "cancelled" else "completed"
        state: dict[str, Any] = {
            "taskId": job.id,
            "status": status,
            "createdAt": _time(job.created),
            "lastUpdatedAt": _time(job.ended),
            # Jobs stay until many others have ended after them, or the server ends.
            "ttlMs": None,
            "pollIntervalMs": POLL_MILLISECONDS,
        }
        if status == "working" and job.message:
            share = f"{job.fraction:.0%}, " if job.fraction is not None else ""
            state["statusMessage"] = f"{share}{self._message(job.message)}"
        return state

    async def _get(self, context: Request, params: TaskParams) -> HandlerResult:
        state = self._state(self._job(context, params.task_id))
        if state["status"] == "completed":
            # Also of work that failed: the tool says so in its result.
            result = await self._result(context, params.task_id)
            if not isinstance(result, CallToolResult):  # a question to the user, which get_job never puts
                raise MCPError(INTERNAL_ERROR, f"there is no result of {params.task_id} to give; call get_job for it")
            state["result"] = result.model_dump(mode="json", by_alias=True, exclude_none=True)
        return {**state, "resultType": "complete"}

    async def _update(self, context: Request, params: TaskParams) -> HandlerResult:
        # Questions to the user are put before a job begins, so no task ever waits for an answer.
        self._job(context, params.task_id)
        return {"resultType": "complete"}

    async def _cancel(self, context: Request, params: TaskParams) -> HandlerResult:
        self._jobs.cancel(self._job(context, params.task_id))
        return {"resultType": "complete"}


def has_tasks(context: Request) -> bool:
    """Whether the client said, with this request, that it has the extension."""
    capabilities = context.session.client_capabilities
    return (
        context.protocol_version in REVISIONS and capabilities is not None and TASKS in (capabilities.extensions or {})
    )


def _time(seconds: float | None) -> str:
    when = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
