"""Calling tools in tests: following job handles, checking answers against the declared schemas."""

from __future__ import annotations

from typing import Any

import jsonschema
from mcp import Client

from mcp_server.toolset import toolset


def text_of(result: Any) -> str:
    return "\n".join(block.text for block in result.content if block.type == "text")


async def good(client: Client, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """A call that must complete; follows job handles."""
    result = await client.call_tool(tool, arguments)
    while not result.is_error and (result.structured_content or {}).get("status") == "running":
        result = await client.call_tool("get_job", {"job_id": result.structured_content["job"]["job_id"]})
    assert not result.is_error, text_of(result)
    assert result.structured_content is not None
    declared = {declaration.name: declaration.output_schema for declaration in toolset().values()}
    jsonschema.validate(result.structured_content, declared[tool])
    return result.structured_content


async def refused(client: Client, tool: str, arguments: dict[str, Any]) -> str:
    """A call that must fail; returns what is said."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error, result.structured_content
    return text_of(result)
