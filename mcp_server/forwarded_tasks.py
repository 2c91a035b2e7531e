"""Tasks of another server, passed on as they are: whoever called polls them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp.client.session import ClientSession
from mcp.types import CallToolResult, Request, Result
from pydantic import ConfigDict

from diffing_mcp.mcp_server.tasks import REVISIONS, TASKS, TaskParams


class PassedTask(Result):
    """A task that a call became, with all that the server says of it."""

    model_config = ConfigDict(extra="allow")

    result_type: Literal["task"]


class PassTasksOn(ClientExtension):
    """Says that there is somebody who polls tasks. Calls must take them (`allow_claimed`): nothing here waits for
    their end.
    """

    identifier = TASKS

    def claims(self) -> Sequence[ResultClaim[Any]]:
        """A task, where a tool was called."""
        return [ResultClaim(result_type="task", model=PassedTask, resolve=_never, protocol_versions=REVISIONS)]


async def _never(task: PassedTask, context: ClaimContext) -> CallToolResult:
    raise RuntimeError(f"the call of {context.tool_name} became a task that nobody polls")


class _TaskRequest(Request[TaskParams, str]):
    method: str
    params: TaskParams

    # What the protocol has the client put into the header Mcp-Name.
    name_param: ClassVar[str | None] = "taskId"


class _TaskAnswer(Result):
    model_config = ConfigDict(extra="allow")


async def send_task_request(session: ClientSession, name: str, task: str) -> dict[str, Any]:
    """What the server answers to `tasks/NAME`, as it stands on the wire.

    Raises:
        MCPError: there is no such task, or the session lacks the extension.
    """
    answer = await session.send_request(
        _TaskRequest(method=f"tasks/{name}", params=TaskParams(task_id=task)), _TaskAnswer
    )
    return answer.model_dump(mode="json", by_alias=True, exclude_unset=True)
