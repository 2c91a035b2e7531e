"""`diffing run`, `diffing pipeline`, `diffing overview`: the methods, from the same declarations as the
server's tools.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffing_mcp.cli.completing import method_names
from diffing_mcp.cli.options import PAIR_HELP, JsonOption, PairOption, SetOption

if TYPE_CHECKING:
    from pydantic import BaseModel

    from diffing_mcp.methods.runs.store import RunRecord


class Mode(StrEnum):
    """Parts of the pipeline."""

    full = "full"
    preprocessing = "preprocessing"
    diffing = "diffing"
    evaluation = "evaluation"


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("run")(run)
    app.command("pipeline")(pipeline)
    app.command("overview")(overview)
    app.command("methods")(list_methods)


def list_methods(as_json: JsonOption = False) -> None:
    """List the methods, or with --json their parameters and results as JSON schemas."""
    from diffing_mcp.cli.output import print_json, print_rows
    from diffing_mcp.methods.registry import all_methods

    methods = all_methods()
    if as_json:
        print_json(
            {
                name: {
                    "title": method.title,
                    "aliases": list(method.aliases),
                    "version": method.version,
                    "cost": method.cost,
                    "description": method.description,
                    "parameters": method.Params.model_json_schema(),
                    "result": method.Result.model_json_schema(),
                }
                for name, method in methods.items()
            }
        )
    else:
        print_rows(
            ("method", "title", "cost", "views"),
            [(name, method.title, method.cost, ", ".join(method.views)) for name, method in methods.items()],
        )


def run(
    methods: Annotated[
        list[str],
        typer.Argument(
            metavar="METHOD...",
            help="One method or several; those that read the same text share one pass.",
            autocompletion=method_names,
        ),
    ],
    pair: PairOption,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run methods on a pair and print what they found. What has been run before is looked up."""
    from diffing_mcp.cli.output import print_json, print_plain

    records = run_records(methods, pair, settings or [])
    results = {record.manifest.method: record.result() for record in records}
    if as_json:
        # One method: its result and nothing around it, so that the output has that method's schema.
        print_json(next(iter(results.values())) if len(results) == 1 else results)
        return
    for record in records:
        print_plain(f"{record.id}  ({record.manifest.seconds:.1f} s)")
        print_plain(record.report(results[record.manifest.method]))
        print_plain("")


def run_records(names: list[str], pair: str, settings: list[str]) -> list[RunRecord]:
    """Resolve, validate and run; everything that can be refused is refused before a model is loaded."""
    from diffing_mcp.api.method_functions import run_many
    from diffing_mcp.api.pairs import load_pair
    from diffing_mcp.cli.output import note, progress_bar

    requests, chosen = dict(method_requests(names, settings)), load_pair(pair)
    note(f"{chosen.name}: {', '.join(names)}")
    with progress_bar("loading") as progress:
        return [run.record for run in run_many(chosen, requests, progress=progress)]


def method_requests(names: list[str], settings: list[str]) -> list[tuple[str, BaseModel]]:
    """Each method's name with its parameters from `--set` texts; see `diffing_mcp.api.parameters.method_requests`.

    Raises:
        UnknownName: there is no such method.
        InvalidInput: an unknown parameter or a value out of range.
    """
    from diffing_mcp.api import parameters

    return parameters.method_requests(names, _values(names, settings))


def _values(names: list[str], settings: list[str]) -> dict[str, Any]:
    from diffing_mcp.cli.output import parse_settings
    from diffing_mcp.methods.registry import get_method

    return parse_settings(
        settings, dict.fromkeys(key for name in names for key in get_method(name).Params.model_fields)
    )


def overview(
    pair: PairOption,
    settings: SetOption = None,
    budget: Annotated[
        int | None,
        typer.Option(
            min=500,
            help=(
                "Tokens that the models may read for it, both sides together; a generated one counts as several. "
                "Default: enough for most."
            ),
        ),
    ] = None,
    characters: Annotated[int, typer.Option(min=1000, help="Size of the digest.")] = 6000,
    as_json: JsonOption = False,
) -> None:
    """One digest of what the methods that fit a budget say about a pair, the cheap ones first."""
    from diffing_mcp.api import overviews
    from diffing_mcp.api.pairs import load_pair
    from diffing_mcp.cli.output import note, print_json, print_plain, progress_bar
    from diffing_mcp.cli.tool_words import as_commands

    chosen = load_pair(pair)
    values = _values(overviews.offered_methods(), settings or [])
    note(f"overview of {chosen.name}")
    with progress_bar("loading") as progress:
        answer = overviews.overview(
            chosen, budget=budget or overviews.DEFAULT_BUDGET, characters=characters, progress=progress, **values
        )
    if as_json:
        print_json(answer.result)
    else:
        print_plain(as_commands(answer.as_text()))


def pipeline(
    pair: Annotated[list[str], typer.Option("--pair", "-p", help=PAIR_HELP + " Repeatable.")],
    mode: Annotated[Mode, typer.Option(help="Which part of the pipeline.")] = Mode.full,
    methods: Annotated[
        str, typer.Option(help="Methods, comma-separated; `all` for every one that needs no vector of an earlier run.")
    ] = "all",
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Preprocessing (models and texts made ready), diffing (the methods), evaluation (agents and grades): all of it or
    one part.

    Every part looks up what is already there, so a pipeline that was cut off is started again with the same command.
    """
    from diffing_mcp.cli.output import print_json, print_plain
    from diffing_mcp.methods.registry import all_methods
    from diffing_mcp.model_pairs.resolve import resolve_pair

    names = (
        [name for name, method in all_methods().items() if not method.needs_vector]
        if methods == "all"
        else [name.strip() for name in methods.split(",") if name.strip()]
    )
    requests = method_requests(names, settings or [])
    for reference in pair:
        resolve_pair(reference)  # a mistyped name is refused before anything is computed
    if mode in (Mode.full, Mode.evaluation):
        _check_gradable(pair)
    report: dict[str, Any] = {}
    for reference in pair:
        part = report[reference] = {}
        if mode in (Mode.full, Mode.preprocessing):
            part["preprocessing"] = _prepare(reference, requests)
        if mode in (Mode.full, Mode.diffing):
            part["diffing"] = {
                record.manifest.method: record.id for record in run_records(names, reference, settings or [])
            }
    if not as_json:
        for reference in pair:
            for stage, outcome in report[reference].items():
                print_plain(f"{reference}: {stage}: " + ", ".join(f"{key} {value}" for key, value in outcome.items()))
    failed = False
    if mode in (Mode.full, Mode.evaluation):
        report["evaluation"], failed = _evaluate(pair, as_json)
    if as_json:
        print_json(report)
    if failed:
        raise typer.Exit(1)


def _check_gradable(pairs: list[str]) -> None:
    """Raise UnknownName for a pair of which nobody has written down what it was taught."""
    from diffing_mcp.agents.grading import truth_of
    from diffing_mcp.core.errors import UnknownName

    try:
        for reference in pairs:
            truth_of(reference)
    except UnknownName as error:
        raise UnknownName(f"{error.message} `--mode diffing` runs the methods alone.") from error


def _evaluate(pairs: list[str], as_json: bool) -> tuple[Any, bool]:
    """`diffing evaluate` with its defaults (baseline investigators, both arms); its report when `as_json`, else it
    prints its table. And whether an investigation failed.
    """
    import contextlib
    import io
    import json

    from diffing_mcp.cli.evaluate import evaluate

    failed = False
    with contextlib.redirect_stdout(io.StringIO()) if as_json else contextlib.nullcontext() as printed:
        try:
            evaluate(organisms=",".join(pairs), as_json=as_json)
        except typer.Exit:  # how it ends, after its report, when an investigation failed
            failed = True
    return json.loads(printed.getvalue()) if printed is not None else None, failed


def _prepare(reference: str, requests: list[tuple[str, BaseModel]]) -> dict[str, Any]:
    """Fetch and check everything the methods will need: weights, adapter, tokenizer, and the texts with their content
    hashes.
    """
    from diffing_mcp.api.pairs import load_pair
    from diffing_mcp.cli.output import progress_bar
    from diffing_mcp.methods.registry import get_method

    pair = load_pair(reference)
    prepared: dict[str, Any] = {}
    with progress_bar("loading") as progress, pair.loaded(progress) as loaded:
        prepared["layers"] = loaded.num_layers
        prepared["vocabulary"] = loaded.vocab_size
        for name, params in requests:
            parts = get_method(name).key_parts(params, pair.spec)
            if "corpus" in parts:
                prepared[f"text of {name}"] = parts["corpus"]["content_hash"][:12]
    return prepared
