"""`diffing verbalizer`: train the adapter that answers questions on activations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

verbalizer = typer.Typer(help="Train verbalizers for the activation oracle.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(verbalizer, name="verbalizer")


@verbalizer.command("train")
def train(
    recipe: Annotated[Path | None, typer.Option(help="YAML file. Default: the recipe of the bundled verbalizer.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the adapter. Default: beside the recipe.")] = None,
    base: Annotated[str | None, typer.Option(help="Another base model: hub id or local folder.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Another number of steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Another number of questions a step.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Another seed.")] = None,
) -> None:
    """Train a verbalizer from a recipe. A run that was cut off goes on where it was."""
    from cli.output import print_plain, progress_bar
    from methods.activation_oracle.training import read_recipe, train_verbalizer
    from methods.activation_oracle.verbalizers import BUNDLED_RECIPE

    path = recipe or BUNDLED_RECIPE
    with progress_bar("training a verbalizer") as progress:
        folder = train_verbalizer(read_recipe(path, base=base, steps=steps, batch_size=batch_size, seed=seed), output or path.parent, progress)
    print_plain(str(folder))
