"""An MCP server with one tool that does nothing, made with the SDK alone: what a round trip costs before any of our
code runs.

`python -m benchmarks.bare_server [PORT]`: over HTTP on that port, else over stdio.
"""

from __future__ import annotations

import sys

from mcp.server.mcpserver import MCPServer
from mcp.types import ToolAnnotations
from pydantic import BaseModel


class Nothing(BaseModel):
    """An empty list, as structured content."""

    hypotheses: list[str] = []


server = MCPServer("bare", log_level="WARNING")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def list_hypotheses() -> Nothing:
    """Answer at once."""
    return Nothing()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
