"""What clients see before anything heavy is loaded: schemas are stable, and torch is not imported for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from diffing_mcp.mcp_server.toolset import toolset
from tests.mcp_server.tool_lines import tool_lines

SNAPSHOT = Path(__file__).parent / "tools.snapshot.txt"

# Each of them takes a tenth of a second or more, and a host waits for the list of tools.
HEAVY = (
    "torch transformers nnsight nnterp peft tokenizers safetensors datasets pandas scipy sklearn pyarrow matplotlib "
    "plotly gradio inspect_ai anthropic openai"
)
TORCH_FREE = f"""
import asyncio, sys
from mcp import Client
from diffing_mcp.mcp_server.serve import build_server
from diffing_mcp.mcp_server.server_context import ServerContext

async def main():
    context = ServerContext()
    for mode in ("auto", "legacy"):
        async with Client(build_server(context), mode=mode) as client:
            tools = await client.list_tools()
            assert tools.tools
            heavy = [name for name in {HEAVY.split()} if name in sys.modules]
            assert not heavy, heavy
            listed = await client.call_tool("list_pairs", {{"limit": 1}})
            assert not listed.is_error, listed
            described = await client.call_tool("describe_pair", {{"pair": "cake_bake"}})
            assert not described.is_error, described
            more = await client.call_tool("more_tools", {{"tool": "kl"}})
            assert not more.is_error, more
    context.close()
    heavy = [name for name in ("torch", "transformers", "nnsight", "peft") if name in sys.modules]
    assert not heavy, heavy
    print("light")

asyncio.run(main())
"""


def test_the_schemas_have_not_changed_unnoticed() -> None:
    """Run with UPDATE_SNAPSHOTS=1 after a change that is meant."""
    current = tool_lines(
        [
            {
                "name": tool.name,
                "title": tool.title,
                "description": tool.description,
                "inputSchema": tool.input_schema,
                "outputSchema": tool.output_schema,
                "annotations": tool.annotations(operator=True).model_dump(by_alias=True, exclude_none=True),
            }
            for tool in toolset().values()
        ]
    )
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


def test_no_schema_fills_an_agents_context_when_it_is_looked_up() -> None:
    for tool in toolset().values():
        assert len(tool.description) <= 1000
        assert len(json.dumps(tool.input_schema)) <= 5000, tool.name
