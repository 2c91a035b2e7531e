"""`diffing config`: the entry that makes an MCP host use this server, ready to paste."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Host(StrEnum):
    """MCP hosts whose configuration format is known."""

    claude_desktop = "claude-desktop"
    claude_code = "claude-code"
    vscode = "vscode"
    cursor = "cursor"


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("config")(config)


def config(
    host: Annotated[Host, typer.Option(help="The MCP host.")],
    url: Annotated[
        str | None,
        typer.Option(
            help="Use a server that is already running (`diffing serve --http`) instead of one that the host starts."
        ),
    ] = None,
    token: Annotated[str | None, typer.Option(help="Bearer token for that server.")] = None,
) -> None:
    """Print the configuration entry for an MCP host; where to put it is said on stderr."""
    from diffing_mcp.cli.output import note, print_json
    from diffing_mcp.mcp_server.host_config import FILES, host_config

    entry = host_config(host.value, url=url, token=token)
    note(f"Put this into {FILES[host.value]}:")
    print_json(entry)
