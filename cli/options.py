"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from diffing_mcp.cli.completing import pair_names

PAIR_HELP = (
    "`organism[/variant][@model]`, or `BASE::FINETUNED` for any two catalogue names, hub ids or local folders "
    "(`#model` or `#adapter` after one that holds both)."
)
SET_HELP = (
    "A parameter as key=value (YAML), repeatable; METHOD.key=value when several methods run and only one shall take it."
)

PairOption = Annotated[str, typer.Option("--pair", "-p", help=PAIR_HELP, autocompletion=pair_names)]
SetOption = Annotated[list[str] | None, typer.Option("--set", "-s", help=SET_HELP)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")]
CsvOption = Annotated[bool, typer.Option("--csv", help="Print a table as CSV on stdout and nothing else there.")]
