"""`diffing config`: the entry that makes an MCP host use this server, ready to paste."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Host(StrEnum):
    """MCP hosts whose configuration format is known."""

    claude_desktop = "claude-desktop"
    claude_code = "claude-code"
    vscode = "vscode"
    cursor = "cursor"


WHERE = {
    Host.claude_desktop: "claude_desktop_config.json (Settings > Developer > Edit Config)",
    Host.claude_code: ".mcp.json in your project, or: claude mcp add-json diffing '<the inner object>'",
    Host.vscode: ".vscode/mcp.json in your project",
    Host.cursor: ".cursor/mcp.json in your project, or ~/.cursor/mcp.json",
}
# Claude Code kills tool calls after this many milliseconds; ours answer within 45 s, with the result or a handle.
CLAUDE_CODE_TIMEOUT = 120_000


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("config")(config)


def config(
    host: Annotated[Host, typer.Option(help="The MCP host.")],
    url: Annotated[str | None, typer.Option(help="Use a server that is already running (`diffing serve --http`) instead of one that the host starts.")] = None,
) -> None:
    """Print the configuration entry for an MCP host; where to put it is said on stderr."""
    from cli.output import note, print_json

    note(f"Put this into {WHERE[host]}:")
    print_json(host_config(host, url, diffing_command()))


def diffing_command() -> str:
    """Absolute path of this environment's `diffing`: hosts start servers with another PATH than a terminal's."""
    script = Path(sys.executable).parent / ("diffing.exe" if sys.platform == "win32" else "diffing")
    return str(script) if script.exists() else "diffing"


def host_config(host: Host, url: str | None, command: str) -> dict[str, Any]:
    """The configuration of one host: a stdio server it starts itself, or a running one at `url`.

    Claude Desktop starts stdio servers only, so with a URL it gets the bridge `diffing connect`.
    """
    entry: dict[str, Any]
    if url is None:
        entry = {"command": command, "args": ["serve"]}
    elif host is Host.claude_desktop:
        entry = {"command": command, "args": ["connect", url]}
    else:
        entry = {"type": "http", "url": url}
    if host is Host.vscode:
        return {"servers": {"diffing": entry if "type" in entry else {"type": "stdio", **entry}}}
    if host is Host.claude_code:
        entry["timeout"] = CLAUDE_CODE_TIMEOUT
    return {"mcpServers": {"diffing": entry}}
