"""`diffing config`: the entry that makes an MCP host use this server, printed or put into the host's file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class HostName(StrEnum):
    """MCP hosts whose configuration format is known; a test holds that `mcp_server.host_config.HOSTS` has the same."""

    claude_desktop = "claude-desktop"
    claude_code = "claude-code"
    vscode = "vscode"
    cursor = "cursor"
    codex = "codex"
    gemini_cli = "gemini-cli"
    opencode = "opencode"
    zed = "zed"
    windsurf = "windsurf"


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("config")(config)


def config(
    host: Annotated[HostName, typer.Option(help="The MCP host.")],
    url: Annotated[
        str | None,
        typer.Option(
            help="Use a server that is already running (`diffing serve --http`) instead of one that the host starts."
        ),
    ] = None,
    token: Annotated[str | None, typer.Option(help="Bearer token for that server.")] = None,
    write: Annotated[
        bool,
        typer.Option(
            "--write", help="Put it into the host's file, keep what is there, and leave a copy of the file as it was."
        ),
    ] = False,
    file: Annotated[
        Path | None, typer.Option(help="The file, where it is not the usual one of this folder or this user.")
    ] = None,
) -> None:
    """Print what an MCP host needs to use this server, or write it into the host's file."""
    from diffing_mcp.cli.output import note, print_json, print_page, print_plain
    from diffing_mcp.mcp_server.host_config import NAME, host_config, known_host, secrets_left_out
    from diffing_mcp.mcp_server.host_files import BACKUP, with_toml_entry, write_entry

    chosen = known_host(host.value)
    shown = host_config(host.value, url=url, token=token)
    entry, place = shown[chosen.key][NAME], file or chosen.file()
    if token:
        note("It holds a token: keep the file out of version control.")
    if url is None and (secrets := secrets_left_out()):
        note(f"Left out, as they are secrets: {', '.join(secrets)}. Where the server needs them, set them by hand.")
    if not write:
        note(f"For {place} ({chosen.title}); --write puts it there:")
        if chosen.form == "toml":
            print_page(with_toml_entry("", chosen.key, NAME, entry).rstrip())
        else:
            print_json(shown)
        return
    existed = place.expanduser().exists() and place.expanduser().stat().st_size > 0
    if not write_entry(place, chosen.form, chosen.key, NAME, entry):
        note(f"{place} has it already.")
        return
    print_plain(str(place))
    note(f"Written; the file as it was: {place}{BACKUP}." if existed else "Written.")
    note(f"Restart {chosen.title}, or reload its servers.")
