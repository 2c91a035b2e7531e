"""A connection to the Diffing MCP server for investigators: bearer token, job handles followed to their end, and a
transcript of everything.

async with connect("http://127.0.0.1:8931/mcp", token) as session:
    reply = await session.call("kl", {"pair": "pair-1f3a", "max_samples": 100})
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from diffing_mcp.agents.records import Message, ToolCall
from diffing_mcp.core.certificates import trusted_certificates
from diffing_mcp.core.errors import DiffingError
from diffing_mcp.core.loopback import through_proxies
from diffing_mcp.core.settings import settings
from diffing_mcp.core.wire import STRUCTURED, expect_unlisted_tools

if TYPE_CHECKING:
    from mcp import Client
    from mcp.types import CallToolResult, RequestParamsMeta

WAIT_SECONDS = 40
"""How long one `get_job` call waits on the server; below the 45 s after which the server answers with a
handle anyway.
"""


class ToolFailed(DiffingError):
    """The server answered a tool call with an error. `message` is the server's text, which says what to do next."""

    code = "tool_failed"

    def __init__(self, tool: str, message: str) -> None:
        super().__init__(message)
        self.tool = tool


class NoServer(DiffingError):
    """No MCP server answers. The message says how to start one."""

    code = "no_server"


@dataclass(frozen=True)
class FinishedCall:
    """A finished tool call: the tool's result, the text an agent would have read, and the stored run behind it."""

    result: dict[str, Any]
    text: str
    run_id: str | None = None


class Session:
    """One investigator's connection. `messages` is the transcript so far; `client` the MCP client."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.messages: list[Message] = []
        self.run_ids: list[str] = []
        self.interactions_left: int | None = None
        self._calls = 0

    def say(self, content: str) -> None:
        """Add a remark of the investigator to the transcript."""
        self.messages.append(Message(role="assistant", content=content))

    async def tool_names(self) -> list[str]:
        """Names of all tools that this token may call, listed at first or not."""
        _, answer = await self._once("more_tools", {})
        return [row["name"] for row in answer["result"]["tools"]]

    async def call(self, tool: str, arguments: dict[str, Any] | None = None, timeout: float = 1800) -> FinishedCall:
        """Call a tool and wait until its work is done.

        Job handles are followed with `get_job`; the transcript shows the call and its final answer.

        Args:
            tool: name of the tool.
            arguments: the tool's arguments.
            timeout: seconds after which the job is cancelled and ToolFailed raised.

        Raises:
            ToolFailed: the tool answered with an error, the job was cancelled, or the time is over.
        """
        self._calls += 1
        call = ToolCall(id=f"call_{self._calls}", name=tool, arguments=arguments or {})
        self.messages.append(Message(role="assistant", tool_calls=[call]))
        started = time.monotonic()
        try:
            text, answer = await self._followed(tool, call.arguments, started + timeout)
        except ToolFailed as failure:
            self._answered(call, failure.message, started, is_error=True)
            raise
        self._answered(call, text, started)
        if (run_id := answer.get("run_id")) and run_id not in self.run_ids:
            self.run_ids.append(run_id)
        return FinishedCall(dict(answer.get("result") or {}), text, run_id)

    async def begin(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """The answer to one call as it comes, outside of the transcript: work that goes on is a job's handle.

        Raises:
            ToolFailed: the tool answered with an error.
        """
        return (await self._once(tool, arguments))[1]

    def _answered(self, call: ToolCall, text: str, started: float, is_error: bool = False) -> None:
        seconds = round(time.monotonic() - started, 3)
        self.messages.append(
            Message(
                role="tool", content=text, tool_call_id=call.id, tool_name=call.name, is_error=is_error, seconds=seconds
            )
        )

    async def _followed(self, tool: str, arguments: dict[str, Any], deadline: float) -> tuple[str, dict[str, Any]]:
        text, answer = await self._once(tool, arguments)
        while answer.get("status") == "running":
            job = str((answer.get("job") or {}).get("job_id", ""))
            if time.monotonic() > deadline:
                await self._once("cancel_job", {"job_id": job})
                raise ToolFailed(tool, f"{tool} took too long and was cancelled (job {job}).")
            text, answer = await self._once("get_job", {"job_id": job, "wait_seconds": WAIT_SECONDS})
        if answer.get("status") == "cancelled":
            raise ToolFailed(tool, text)
        return text, answer

    async def _once(self, tool: str, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        result: CallToolResult = await self.client.call_tool(
            tool, arguments, meta=cast("RequestParamsMeta", {STRUCTURED: True})
        )
        text = "\n".join(block.text for block in result.content if block.type == "text")
        if result.is_error:
            raise ToolFailed(tool, text)
        answer = dict(result.structured_content or {})
        if budget := answer.get("budget"):
            self.interactions_left = budget["interactions_left"]
        return text, answer


def called(tool: str, arguments: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The tool that a call is for, and what that is given: `more_tools` may call another."""
    inner, given = arguments.get("tool"), arguments.get("arguments")
    if tool != "more_tools" or not isinstance(inner, str) or given is None:
        return tool, arguments
    if isinstance(given, str):
        with suppress(ValueError, RecursionError):
            given = json.loads(given)
    return inner, given if isinstance(given, Mapping) else {}


@asynccontextmanager
async def connect(url: str, token: str | None = None) -> AsyncIterator[Session]:
    """Connect to the server's MCP endpoint (`http://host:port/mcp`), with a bearer token when there is one."""
    import httpx2
    from mcp import Client
    from mcp.client.streamable_http import streamable_http_client

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    # A tool call may be silent for as long as the server lets it wait (45 s, with pings between): only the connection
    # itself has a short time-out.
    timeout = httpx2.Timeout(30, read=300)
    expect_unlisted_tools()
    heeded = through_proxies(url)
    async with (
        httpx2.AsyncClient(
            headers=headers, timeout=timeout, trust_env=heeded, verify=trusted_certificates(heeded)
        ) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        yield Session(client)


async def call_as_operator(url: str, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """One tool's finished result over a connection of its own; work that takes long is waited for. Raises as
    `operator_session` does.
    """
    async with operator_session(url) as session:
        return (await session.call(tool, arguments)).result


@asynccontextmanager
async def operator_session(url: str) -> AsyncIterator[Session]:
    """A connection as an operator. DIFFING_OPERATOR_TOKEN of this process is sent when it is set.

    Raises:
        ToolFailed: a tool answered with an error, which says what to do next.
        NoServer: nothing answers, or the token is not the server's.
    """
    token = settings().operator_token
    try:
        async with connect(url, token.get_secret_value() if token else None) as session:
            yield session
    except DiffingError:
        raise
    except Exception as error:
        raise _expected(error, url) from error


def _expected(error: Exception, url: str) -> Exception:
    """What a failed connection means: the tool's own error if there is one, else that nothing answered."""
    import httpx2
    from mcp import MCPError

    causes = list(_leaves(error))
    if own := next((cause for cause in causes if isinstance(cause, DiffingError)), None):
        return own
    if any(isinstance(cause, OSError | httpx2.HTTPError | MCPError) for cause in causes):
        return NoServer(
            f"No server answers at {url}. If it asks for a token, set DIFFING_OPERATOR_TOKEN here to the one it was "
            "started with."
        )
    return error


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors of nested groups one by one."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error
