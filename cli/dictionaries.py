"""`diffing dictionaries`: the sparse autoencoders and crosscoders that were trained here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffing_mcp.cli.help_sections import Sections
from diffing_mcp.cli.options import JsonOption

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="Id of a dictionary, from `diffing dictionaries list`, or of a run that trained one."
    ),
]

dictionaries = typer.Typer(
    cls=Sections,
    help="List, copy, upload and delete trained dictionaries.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(dictionaries, name="dictionaries")


@dictionaries.command("list")
def list_dictionaries(as_json: JsonOption = False) -> None:
    """List the dictionaries, newest first, then trainings that were cut off and folders that cannot be read."""
    from diffing_mcp.cli.output import note, print_json, print_rows
    from diffing_mcp.methods.dictionaries.stored import listing

    found = listing()
    if as_json:
        print_json([*found.dictionaries, *found.leftovers])
        return
    rows: list[tuple[object, ...]] = [
        (
            each.id,
            each.state,
            each.kind,
            each.layer,
            each.d_model,
            each.latents,
            each.k,
            each.steps,
            "-" if each.variance_explained is None else f"{each.variance_explained:.3f}",
            f"{each.megabytes:.1f} MB",
        )
        for each in found.dictionaries
    ]
    for other in found.leftovers:
        rows.append(
            (
                other.id,
                other.state,
                other.kind,
                None,
                None,
                other.latents,
                other.k,
                other.steps,
                None,
                f"{other.megabytes:.1f} MB",
            )
        )
    print_rows(("id", "state", "kind", "layer", "d_model", "latents", "k", "steps", "variance explained", "size"), rows)
    for other in found.leftovers:
        note(f"{other.id}: {other.problem}")


@dictionaries.command("export")
def export_dictionary(
    source: SourceArgument,
    folder: Annotated[Path, typer.Argument(help="Where the copy goes.")],
    as_json: JsonOption = False,
) -> None:
    """Copy a dictionary into a folder, in the layout of published ones; `--set dictionary=FOLDER` uses it."""
    from diffing_mcp.cli.output import print_json, print_plain
    from diffing_mcp.methods.dictionaries.stored import export

    target = export(_folder(source), folder)
    if as_json:
        print_json({"folder": str(target)})
    else:
        print_plain(f"wrote {target}")


@dictionaries.command("push")
def push_dictionary(
    source: SourceArgument,
    repository: Annotated[
        str, typer.Argument(help="Model repository of the hub, `account/name`. Needs a token in HF_TOKEN.")
    ],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public; private otherwise.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Upload a dictionary to the hub; `--set dictionary=account/name` uses it."""
    from diffing_mcp.cli.output import print_json, print_plain
    from diffing_mcp.methods.dictionaries.stored import push

    address = push(_folder(source), repository, private=not public)
    if as_json:
        print_json({"address": address})
    else:
        print_plain(f"uploaded: {address}")


@dictionaries.command("delete")
def delete_dictionaries(
    identifiers: Annotated[
        list[str], typer.Argument(metavar="ID...", help="Whole ids, from `diffing dictionaries list`.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Delete dictionaries, trainings that were cut off, or folders that cannot be read. Results of runs that used them
    stay.
    """
    from diffing_mcp.cli.output import print_json, print_plain
    from diffing_mcp.methods.dictionaries.stored import delete, exactly

    found = [exactly(identifier) for identifier in dict.fromkeys(identifiers)]  # all of them are there before one goes
    megabytes = sum(delete(identifier) for identifier in found)
    if as_json:
        print_json({"deleted": found, "megabytes": megabytes})
    else:
        print_plain(f"deleted {', '.join(found)} ({megabytes:.1f} MB)")


def _folder(source: str) -> Path:
    from diffing_mcp.core.errors import UnknownName
    from diffing_mcp.methods.dictionaries.stored import folder_of, folder_of_run, listing
    from diffing_mcp.methods.runs.store import default_store

    everything = listing()
    ids = [each.id for each in everything.dictionaries] + [each.id for each in everything.leftovers]
    if any(identifier.startswith(source) for identifier in ids):
        return folder_of(source)
    try:
        record = default_store().get(source)
    except UnknownName as error:
        raise UnknownName(
            f"No trained dictionary and no run begins with {source!r}. `diffing dictionaries list` shows the "
            "dictionaries."
        ) from error
    return folder_of_run(record)
