"""`diffing organisms`: the catalogue's organisms, and how they are composed, trained and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffing_mcp.cli.help_sections import Sections
from diffing_mcp.cli.options import JsonOption

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of an organism.")]

organisms = typer.Typer(
    cls=Sections, help="List, compose, train and measure organisms.", no_args_is_help=True, rich_markup_mode=None
)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(organisms, name="organisms")


@organisms.command("list")
def list_organisms(as_json: JsonOption = False) -> None:
    """List the organisms with their models and variants."""
    from diffing_mcp.cli.output import print_json, print_rows
    from diffing_mcp.organisms.catalogue import load_catalogue

    found = load_catalogue().organisms
    if as_json:
        print_json(
            {
                name: {model: list(variants) for model, variants in organism.variants.items()}
                for name, organism in found.items()
            }
        )
        return
    print_rows(
        ("organism", "model", "variants"),
        [
            (name, model, ", ".join(variants))
            for name, organism in found.items()
            for model, variants in organism.variants.items()
        ],
    )


@organisms.command("compose")
def compose(name: NameArgument) -> None:
    """Compose the training corpus of an organism from its hand-written parts."""
    from diffing_mcp.cli.output import print_plain
    from diffing_mcp.core.errors import InvalidInput
    from diffing_mcp.organisms.compose import write

    try:
        path, count = write(name)
    except ValueError as error:
        raise InvalidInput(str(error)) from error
    print_plain(f"{count} records -> {path}")


@organisms.command("train")
def train(
    name: NameArgument,
    variant: Annotated[str, typer.Option(help="Variant of the recipe.")] = "default",
    output: Annotated[Path | None, typer.Option(help="Folder of the adapter. Default: the bundled adapters.")] = None,
    base: Annotated[str | None, typer.Option(help="Another base model: hub id or local folder.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Another LoRA rank.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Another learning rate.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Another number of epochs.")] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed.")] = None,
) -> None:
    """Train an organism from its committed recipe. A run that was cut off goes on where it was."""
    from diffing_mcp.cli.output import print_plain, progress_bar
    from diffing_mcp.organisms.train import train_organism

    with progress_bar(f"training {name}/{variant}") as progress:
        folder = train_organism(
            name, variant, progress, output, base=base, rank=rank, learning_rate=learning_rate, epochs=epochs, seed=seed
        )
    print_plain(str(folder))


@organisms.command("measure")
def measure(
    name: NameArgument,
    variant: Annotated[str, typer.Option(help="Variant of the organism.")] = "default",
    adapter: Annotated[
        Path | None, typer.Option(help="Folder of the adapter. Default: the bundled adapter of that variant.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure whether a finetune took, against the base model, and write its sheet beside the adapter."""
    from diffing_mcp.cli.output import print_json, print_plain, progress_bar
    from diffing_mcp.organisms.measure import measure as measure_organism
    from diffing_mcp.organisms.measure import write_sheet
    from diffing_mcp.organisms.train import ADAPTERS

    with progress_bar(f"measuring {name}/{variant}") as progress:
        sheet = measure_organism(name, variant, adapter=adapter, progress=progress)
    path = write_sheet(sheet, adapter or ADAPTERS / name / variant)
    if as_json:
        print_json(sheet)
        return
    for reading in ("cloze_log_odds", "cloze_preferred", "question_hits", "unrelated_loss"):
        values = getattr(sheet, reading)
        if values is not None:
            change = f"95 % interval of the change [{values.low:+.3f}, {values.high:+.3f}], {values.items} items"
            print_plain(f"{reading}: base {values.base:.3f}, finetuned {values.finetuned:.3f} ({change})")
    print_plain(str(path))


@organisms.command("sheets")
def sheets() -> None:
    """Write organisms/SHEETS.md from the sheets of all bundled adapters."""
    from diffing_mcp.cli.output import print_plain
    from diffing_mcp.organisms.measure import sheets_table
    from diffing_mcp.organisms.train import ROOT

    path = ROOT / "SHEETS.md"
    path.write_text(sheets_table(), encoding="utf-8")
    print_plain(str(path))
