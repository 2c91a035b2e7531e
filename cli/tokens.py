"""`diffing tokens`: tokens of operators with limits of their own, and who called which tool when."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from diffing_mcp.cli.help_sections import Sections
from diffing_mcp.cli.options import JsonOption

tokens = typer.Typer(
    cls=Sections, help="Make, list and revoke tokens; see who called what.", no_args_is_help=True, rich_markup_mode=None
)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(tokens, name="tokens")


@tokens.command("new")
def new(
    name: Annotated[str, typer.Argument(help="Who or what it is for; kept with every call.")],
    tools: Annotated[
        str | None, typer.Option(help="Sets and names of tools that it may use, comma-separated. Default: all.")
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Nothing that trains, stores, deletes or unloads.")
    ] = False,
    requests_per_minute: Annotated[int | None, typer.Option(help="Default: no limit.")] = None,
    request_bytes: Annotated[int | None, typer.Option(help="Largest request. Default: the server's 4 MiB.")] = None,
) -> None:
    """Make a token of an operator within limits and print it, which is shown this once. The server may be running."""
    from diffing_mcp.cli.output import note, print_plain
    from diffing_mcp.mcp_server.access_tokens import Grant, create
    from diffing_mcp.mcp_server.toolset import toolset, toolsets

    allowed: list[str] | None = None
    if tools is not None:
        named = [part.strip() for part in tools.split(",") if part.strip()]
        allowed = [tool for part in named for tool in toolsets().get(part, (part,))]
    grant = Grant(
        name=name,
        tools=tuple(dict.fromkeys(allowed)) if allowed is not None else None,
        read_only=read_only,
        requests_per_minute=requests_per_minute,
        request_bytes=request_bytes,
    )
    token = create(grant, tuple(toolset()))
    note(f"token {name}, shown this once:")
    print_plain(token)


@tokens.command("list")
def list_all(as_json: JsonOption = False) -> None:
    """List the tokens, without themselves."""
    from diffing_mcp.cli.output import print_json, print_rows
    from diffing_mcp.mcp_server.access_tokens import list_tokens

    found = list_tokens()
    if as_json:
        print_json(found)
        return
    rows = [
        (
            row.grant.name,
            f"{len(row.grant.tools)} tools" if row.grant.tools is not None else "all tools",
            "read only" if row.grant.read_only else "",
            row.grant.requests_per_minute or "",
            row.grant.request_bytes or "",
            f"{datetime.fromtimestamp(row.created):%Y-%m-%d %H:%M}",
            "revoked" if row.revoked else "valid",
        )
        for row in found
    ]
    print_rows(("name", "tools", "", "requests a minute", "bytes", "made", "state"), rows)


@tokens.command("revoke")
def revoke(name: Annotated[str, typer.Argument(help="Its name, from `diffing tokens list`.")]) -> None:
    """Refuse a token from now on."""
    from diffing_mcp.cli.output import note
    from diffing_mcp.mcp_server.access_tokens import revoke as refuse

    refuse(name)
    note(f"{name} is revoked")


@tokens.command("calls")
def calls(
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many, the newest first.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """Show who called which tool when; neither arguments nor answers are kept."""
    from diffing_mcp.cli.output import print_json, print_rows
    from diffing_mcp.mcp_server.access_tokens import recorded_calls

    found = recorded_calls(limit)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            f"{datetime.fromtimestamp(call.when):%Y-%m-%d %H:%M:%S}",
            call.caller,
            call.tool,
            call.outcome,
            f"{call.seconds:.1f} s",
        )
        for call in found
    ]
    print_rows(("when", "who", "tool", "outcome", "took"), rows)
