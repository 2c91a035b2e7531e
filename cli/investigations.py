"""`diffing investigations`: give an agent one blinded pair, a tool set and a budget, and read what it did with them."""

from __future__ import annotations

from typing import Annotated

import typer

from diffing_mcp.cli.help_sections import Sections
from diffing_mcp.cli.options import JsonOption, PairOption

InvestigationArgument = Annotated[
    str, typer.Argument(metavar="INVESTIGATION", help="Id of an investigation, its beginning, or its label.")
]

investigations = typer.Typer(
    cls=Sections, help="Create, list, show and close investigations.", no_args_is_help=True, rich_markup_mode=None
)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(investigations, name="investigations")


@investigations.command("new")
def new(
    pair: PairOption,
    tools: Annotated[
        str,
        typer.Option(help="`blackbox` (model queries only), `method` (everything), or tool names, comma-separated."),
    ] = "method",
    interactions: Annotated[
        int, typer.Option(help="Budget of model interactions: one a prompt and sample, for both models.")
    ] = 50,
    tool_calls: Annotated[int, typer.Option(help="Budget of tool calls; free tools do not count.")] = 200,
    comment: Annotated[str, typer.Option("--note", help="A note for operators; the agent never sees it.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Create an investigation and print its bearer token, which is shown this once."""
    from diffing_mcp.cli.output import note, print_json, print_plain
    from diffing_mcp.mcp_server.declarations import tool_names
    from diffing_mcp.mcp_server.investigations import create
    from diffing_mcp.mcp_server.toolset import toolset

    created = create(
        pair,
        tools,
        interactions=interactions,
        tool_calls=tool_calls,
        note=comment,
        known_tools=tool_names(toolset()),
    )
    if as_json:
        print_json(created)
        return
    note(f"investigation {created.id}, shown to the agent as {created.label}. Its bearer token, shown this once:")
    print_plain(created.token)


@investigations.command("list")
def list_all(as_json: JsonOption = False) -> None:
    """List the investigations, oldest first."""
    from datetime import datetime

    from diffing_mcp.cli.output import print_json, print_rows
    from diffing_mcp.mcp_server.investigations import list_investigations

    found = list_investigations()
    if as_json:
        print_json(found)
        return
    rows = [
        (
            i.id,
            i.label,
            i.pair,
            ",".join(i.tools),
            i.interactions,
            i.tool_calls,
            f"{datetime.fromtimestamp(i.created):%Y-%m-%d %H:%M}",
            "closed" if i.closed else "open",
            i.note,
        )
        for i in found
    ]
    print_rows(("investigation", "label", "pair", "tools", "interactions", "tool calls", "made", "state", "note"), rows)


@investigations.command("show")
def show(investigation: InvestigationArgument, as_json: JsonOption = False) -> None:
    """Show the ledger, the calls, the hypotheses and the findings of an investigation."""
    import json

    from diffing_mcp.cli.output import print_json, print_plain, print_rows
    from diffing_mcp.mcp_server.investigations import show as read

    record = read(investigation)
    if as_json:
        print_json(record)
        return
    about = record.investigation
    print_plain(
        f"{about.id} ({about.label}): {about.pair}, tools {','.join(about.tools)}, "
        f"{'closed' if about.closed else 'open'}"
    )
    print_plain(record.budget.as_text())
    if record.calls:
        rows = [
            (
                call.number,
                call.tool,
                _short(json.dumps(call.arguments, ensure_ascii=False)),
                call.outcome,
                f"{call.seconds:.1f} s",
            )
            for call in record.calls
        ]
        print_rows(("call", "tool", "arguments", "outcome", "took"), rows)
    for title, entries in (("hypothesis", record.hypotheses), ("finding", record.findings)):
        for entry in entries:
            print_plain(f"{title}: {json.dumps(entry.model_dump(mode='json'), ensure_ascii=False)}")


@investigations.command("close")
def close(investigation: InvestigationArgument) -> None:
    """End an investigation: its token is refused from now on, its record stays."""
    from diffing_mcp.mcp_server.investigations import close as end

    end(investigation)


def _short(text: str, length: int = 90) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
