"""`diffing report`: what finished runs say of a pair, as one HTML file."""

from __future__ import annotations

from typing import Annotated

import typer

from diffing_mcp.cli.completing import pair_names


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("report")(report)


def report(
    pair: Annotated[
        str, typer.Argument(help="A pair with finished runs, such as `cake_bake`.", autocompletion=pair_names)
    ],
) -> None:
    """Make a page of what is known of a pair, which needs nothing else: `diffing report PAIR -o report.html`."""
    from diffing_mcp.cli.output import print_page
    from diffing_mcp.methods.runs.store import default_store
    from diffing_mcp.ui.report import pair_report

    print_page(pair_report(pair, default_store()))
