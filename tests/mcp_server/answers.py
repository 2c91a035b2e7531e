"""Calling tools in tests: following job handles, checking answers against the declared schemas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from mcp import Client
from mcp.types import CallToolResult

from diffing_mcp.core.wire import STRUCTURED
from diffing_mcp.mcp_server.toolset import toolset

if TYPE_CHECKING:
    from mcp.types import RequestParamsMeta


def text_of(result: Any) -> str:
    return "\n".join(block.text for block in result.content if block.type == "text")


async def answered(client: Client, tool: str, arguments: dict[str, Any], **options: Any) -> CallToolResult:
    """A call as our own programs make it: the answer's data come beside the text."""
    meta = cast("RequestParamsMeta", {STRUCTURED: True})
    return await client.call_tool(tool, arguments, meta=meta, **options)


async def good(client: Client, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """A call that must complete; follows job handles."""
    result = await answered(client, tool, arguments)
    while not result.is_error and (answer := result.structured_content or {}).get("status") == "running":
        result = await answered(client, "get_job", {"job_id": answer["job"]["job_id"]})
    assert not result.is_error, text_of(result)
    assert result.structured_content is not None
    _validators()[tool].validate(result.structured_content)
    return result.structured_content


@cache
def _validators() -> dict[str, Validator]:
    """Tool -> what checks its answers; the schemas themselves are checked once."""
    found: dict[str, Validator] = {}
    for declaration in toolset().values():
        schema = declaration.output_schema
        kind = validator_for(schema)
        kind.check_schema(schema)
        found[declaration.name] = kind(schema)
    return found


async def refused(client: Client, tool: str, arguments: dict[str, Any]) -> str:
    """A call that must fail; returns what is said."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error, result.structured_content
    return text_of(result)


@asynccontextmanager
async def held(client: Client) -> AsyncIterator[Client]:
    """The client open in a task of its own: fixtures are set up and torn down in different tasks, which its cancel
    scopes do not allow.
    """
    opened: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def hold() -> None:
        async with client as entered:
            opened.set_result(entered)
            await over.wait()

    task = asyncio.create_task(hold())
    waited: list[asyncio.Future[Any]] = [opened, task]
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    yield opened.result()
    over.set()
    await task
