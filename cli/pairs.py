"""`diffing pairs`: what there is to compare."""

from __future__ import annotations

from typing import Annotated

import typer

from diffing_mcp.cli.completing import pair_names
from diffing_mcp.cli.help_sections import Sections
from diffing_mcp.cli.options import CsvOption, JsonOption

pairs = typer.Typer(
    cls=Sections,
    help="List the pairs of the catalogue, or show what a pair reference stands for.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(pairs, name="pairs")


@pairs.command("list")
def list_pairs(
    offline: Annotated[bool, typer.Option("--offline", help="Only pairs whose files are on this machine.")] = False,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """List the pairs of the catalogue."""
    from diffing_mcp.api import pairs as known
    from diffing_mcp.cli.output import check_one_form, print_csv, print_json, print_rows
    from diffing_mcp.model_pairs import resolve

    check_one_form(as_json, as_csv)
    if as_csv:
        print_csv(known.list_pairs(offline=offline))
        return

    found = [pair for pair in resolve.list_pairs() if pair.available_offline or not offline]
    if as_json:
        print_json(found)
        return
    rows = [
        (pair.name, pair.organism, pair.variant, pair.model, "yes" if pair.available_offline else "") for pair in found
    ]
    print_rows(("pair", "organism", "variant", "model", "on this machine"), rows)


@pairs.command("show")
def show_pair(
    pair: Annotated[str, typer.Argument(help="A pair reference.", autocompletion=pair_names)],
    as_json: JsonOption = False,
) -> None:
    """Show which models, adapters and revisions a pair reference stands for."""
    from diffing_mcp.cli.output import print_json, print_plain
    from diffing_mcp.methods.results import compact_text
    from diffing_mcp.model_pairs.resolve import resolve_pair

    spec = resolve_pair(pair)
    if as_json:
        print_json(spec)
    else:
        print_plain(
            compact_text(
                {
                    "headline": spec.name,
                    **spec.model_dump(mode="json", exclude={"name"}, exclude_none=True, exclude_defaults=True),
                }
            )
        )
