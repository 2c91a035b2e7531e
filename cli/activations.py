"""`diffing activations`: both models' activations on a corpus, stored for the methods that learn from them."""

from __future__ import annotations

from typing import Annotated

import typer

from diffing_mcp.cli.help_sections import Sections
from diffing_mcp.cli.options import JsonOption, PairOption

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of a collection, from `diffing activations list`.")]

activations = typer.Typer(
    cls=Sections,
    help="Collect, list, describe and delete stored activations.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(activations, name="activations")


@activations.command("collect")
def collect_activations(
    pair: PairOption,
    settings: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="A parameter as key=value (YAML), repeatable.")
    ] = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Only say how much disk it would take.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Collect activations. What is there is looked up; what was cut off goes on at its last finished shard."""
    from diffing_mcp.cli.output import note, parse_params, print_json, print_plain, progress_bar
    from diffing_mcp.model_pairs.residency import ModelPairs
    from diffing_mcp.model_pairs.resolve import resolve_pair
    from diffing_mcp.preprocessing.activation_collection import CollectionParams, collect, find_collection
    from diffing_mcp.preprocessing.activation_estimate import estimate_collection
    from diffing_mcp.preprocessing.activation_store import default_activation_store
    from diffing_mcp.preprocessing.activation_summary import collection_row

    params = parse_params(CollectionParams, settings or [])
    spec, store = resolve_pair(pair), default_activation_store()
    size = estimate_collection(spec, params, store.folder)
    if estimate:
        if as_json:
            print_json(size)
        else:
            print_plain(size.as_text())
        return
    index = find_collection(store, spec, params)
    if index is None:
        note(f"{spec.name}: {size.as_text()}")
        with progress_bar("loading") as progress, ModelPairs().use(spec, progress) as loaded:
            index = collect(store, loaded, params, progress)
    row = collection_row(index)
    if as_json:
        print_json(row)
    else:
        print_plain(row.as_text())


@activations.command("list")
def list_activations(
    pair: Annotated[str | None, typer.Option(help="Of this pair only.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the collections, newest first."""
    from diffing_mcp.cli.output import print_json, print_rows
    from diffing_mcp.model_pairs.fingerprint import pair_identity
    from diffing_mcp.model_pairs.resolve import resolve_pair
    from diffing_mcp.preprocessing.activation_store import default_activation_store
    from diffing_mcp.preprocessing.activation_summary import broken_rows, collection_row

    identity = pair_identity(resolve_pair(pair)) if pair is not None else None
    store = default_activation_store()
    rows = [collection_row(index) for index in store.list() if identity in (None, index.pair)] + (
        [] if pair else broken_rows(store)
    )
    if as_json:
        print_json(rows)
        return
    columns = ("id", "pair", "corpus", "layers", "tokens", "dtype", "shards", "size")
    print_rows(
        columns,
        [
            (
                row.id,
                row.pair,
                row.corpus,
                ", ".join(map(str, row.layers)),
                row.tokens,
                row.dtype,
                "broken" if row.broken else row.shards,
                f"{row.megabytes:.1f} MB",
            )
            for row in rows
        ],
    )


@activations.command("describe")
def describe_activations(
    identifier: IdArgument,
    check: Annotated[bool, typer.Option("--check", help="Read all files and compare them with their hashes.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Describe a collection: parameters, sizes by layer, whether its files are whole."""
    from diffing_mcp.cli.output import print_json, print_plain
    from diffing_mcp.preprocessing.activation_store import default_activation_store
    from diffing_mcp.preprocessing.activation_summary import describe

    store = default_activation_store()
    described = describe(store, store.get(identifier), check)
    if as_json:
        print_json(described)
    else:
        print_plain(described.as_text())


@activations.command("delete")
def delete_activations(
    identifiers: Annotated[list[str], typer.Argument(metavar="ID...", help="Whole ids of collections.")],
    as_json: JsonOption = False,
) -> None:
    """Delete collections from the disk."""
    from diffing_mcp.cli.output import print_json, print_plain
    from diffing_mcp.preprocessing.activation_store import default_activation_store
    from diffing_mcp.preprocessing.activation_summary import exactly

    store = default_activation_store()
    found = [exactly(store, identifier) for identifier in identifiers]  # all of them are there before one goes
    deleted = [store.delete(identifier) for identifier in found]
    if as_json:
        print_json({"deleted": deleted})
    else:
        print_plain(f"deleted {', '.join(deleted)}")
