"""What clients see before anything heavy is loaded: schemas are stable, and torch is not imported for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mcp import Client

from diffing_mcp.mcp_server.declarations import tool_names
from diffing_mcp.mcp_server.serve import build_server
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.mcp_server.toolset import toolset
from tests.mcp_server.tool_lines import tool_lines

SNAPSHOT = Path(__file__).parent / "tools.snapshot.txt"

TORCH_FREE = """
import asyncio, sys
from mcp import Client
from diffing_mcp.mcp_server.serve import build_server
from diffing_mcp.mcp_server.server_context import ServerContext

async def main():
    context = ServerContext()
    for mode in ("auto", "legacy"):
        async with Client(build_server(context), mode=mode) as client:
            tools = await client.list_tools()
            assert len(tools.tools) > 10
            listed = await client.call_tool("list_pairs", {})
            assert not listed.is_error, listed
            described = await client.call_tool("describe_pair", {"pair": listed.structured_content["result"]["pairs"][0]["name"]})
            assert not described.is_error, described
    context.close()
    heavy = [name for name in ("torch", "transformers", "nnsight", "peft") if name in sys.modules]
    assert not heavy, heavy
    print("light")

asyncio.run(main())
"""  # noqa: E501


async def test_the_schemas_have_not_changed_unnoticed(data_folder: Path, context: ServerContext) -> None:
    """Run with UPDATE_SNAPSHOTS=1 after a change that is meant."""
    async with Client(build_server(context)) as client:
        tools = [
            tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in (await client.list_tools()).tools
        ]
    current = tool_lines(tools)
    if os.environ.get("UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(current)
    assert SNAPSHOT.read_text().splitlines() == current.splitlines(), (
        "tool schemas changed; if that is meant, run with UPDATE_SNAPSHOTS=1 and commit"
    )


def test_tools_are_listed_without_torch(data_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TORCH_FREE],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "light\n"


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_schemas_are_small(data_folder: Path, context: ServerContext, mode: str) -> None:
    """The tools of an investigation must not fill an agent's context, nor must all of them fill an operator's."""
    async with Client(build_server(context), mode=mode) as client:
        tools = (await client.list_tools()).tools
    sizes = {tool.name: len(json.dumps(tool.input_schema)) + len(tool.description or "") for tool in tools}
    assert sum(sizes.values()) < 82_000
    assert sum(sizes[name] for name in tool_names(toolset())) < 80_000
