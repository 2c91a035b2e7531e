"""`diffing run`, `diffing pipeline`, `diffing overview`: the methods, from the same declarations as the
server's tools.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffing_mcp.core.errors import InvalidInput

if TYPE_CHECKING:
    from pydantic import BaseModel

    from diffing_mcp.methods.runs.store import RunRecord

PAIR_HELP = (
    "`organism[/variant][@model]`, or `BASE::FINETUNED` for any two catalogue names, hub ids or local folders "
    "(`#model` or `#adapter` after one that holds both)."
)
SET_HELP = (
    "A parameter as key=value (YAML), repeatable; METHOD.key=value when several methods run and only one shall take it."
)

PairOption = Annotated[str, typer.Option("--pair", "-p", help=PAIR_HELP)]
SetOption = Annotated[list[str] | None, typer.Option("--set", "-s", help=SET_HELP)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")]


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
            metavar="METHOD...", help="One method or several; those that read the same text share one pass."
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
    from diffing_mcp.cli.output import note, progress_bar
    from diffing_mcp.methods.runs.execute import run_methods
    from diffing_mcp.methods.runs.store import default_store
    from diffing_mcp.model_pairs.residency import ModelPairs
    from diffing_mcp.model_pairs.resolve import resolve_pair

    requests = method_requests(names, settings)
    spec = resolve_pair(pair)
    note(f"{spec.name}: {', '.join(names)}")
    with progress_bar("loading") as progress:
        return run_methods(ModelPairs(), spec, requests, default_store(), progress)


def method_requests(names: list[str], settings: list[str]) -> list[tuple[str, BaseModel]]:
    """Each method's name with its parameters. A plain key goes to every method that knows it; one that none knows is
    refused.

    Raises:
        UnknownName: there is no such method.
        InvalidInput: an unknown parameter or a value out of range.
    """
    from diffing_mcp.cli.output import parse_params
    from diffing_mcp.methods.registry import get_method

    chosen = {name: get_method(name) for name in dict.fromkeys(names)}
    requests: list[tuple[str, BaseModel]] = []
    taken: set[str] = set()
    for name, method in chosen.items():
        mine = []
        for text in settings:
            key = text.partition("=")[0]
            owner, dot, _ = key.partition(".")
            if dot and owner in chosen:
                if owner == name:
                    mine.append(text[len(owner) + 1 :])
                    taken.add(text)
            elif len(chosen) == 1 or key.strip().replace("-", "_") in method.Params.model_fields:
                mine.append(text)
                taken.add(text)
        requests.append((name, parse_params(method.Params, mine)))
    if unknown := [text for text in settings if text not in taken]:
        fields = {name: ", ".join(method.Params.model_fields) for name, method in chosen.items()}
        raise InvalidInput(
            f"No method here takes --set {', '.join(unknown)}. "
            + " ".join(f"{name}: {known}." for name, known in fields.items())
        )
    return requests


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
    from diffing_mcp.cli.output import note, print_json, print_plain, progress_bar
    from diffing_mcp.methods.overview.digest import digest
    from diffing_mcp.methods.overview.plan import DEFAULT_BUDGET, PENDING, choose, run_plan
    from diffing_mcp.methods.registry import all_methods
    from diffing_mcp.methods.runs.execute import run_methods
    from diffing_mcp.methods.runs.store import default_store
    from diffing_mcp.model_pairs.residency import ModelPairs
    from diffing_mcp.model_pairs.resolve import resolve_pair

    offered = [method for method in all_methods().values() if method.in_overview]
    vectors = [f"{method.name}.vector={PENDING}" for method in offered if method.needs_vector]
    budget = budget or DEFAULT_BUDGET
    plan = choose(dict(method_requests([method.name for method in offered], [*(settings or []), *vectors])), budget)
    if not plan.requests:
        raise InvalidInput(
            f"A budget of {budget} allows no method; the cheapest is {plan.left_out[0].method}, "
            f"{plan.left_out[0].work}."
        )
    spec = resolve_pair(pair)
    note(f"{spec.name}: {', '.join(name for name, _ in plan.all)}")
    pairs, store = ModelPairs(), default_store()
    with progress_bar("loading") as progress:
        records, left_out = run_plan(plan, lambda requests: run_methods(pairs, spec, requests, store, progress))
    result = digest(records, characters, left_out=left_out)
    if as_json:
        print_json(result)
    else:
        print_plain(result.as_text())


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
    if mode in (Mode.full, Mode.evaluation):
        report["evaluation"] = _evaluate(pair, as_json)
    if as_json:
        print_json(report)


def _evaluate(pairs: list[str], as_json: bool) -> Any:
    """`diffing evaluate` with its defaults (baseline investigators, both arms); its report when `as_json`, else it
    prints its table.
    """
    import contextlib
    import io
    import json

    from diffing_mcp.cli.evaluate import evaluate

    if not as_json:
        evaluate(organisms=",".join(pairs))
        return None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        evaluate(organisms=",".join(pairs), as_json=True)
    return json.loads(printed.getvalue())


def _prepare(reference: str, requests: list[tuple[str, BaseModel]]) -> dict[str, Any]:
    """Fetch and check everything the methods will need: weights, adapter, tokenizer, and the texts with their content
    hashes.
    """
    from diffing_mcp.cli.output import progress_bar
    from diffing_mcp.methods.registry import get_method
    from diffing_mcp.model_pairs.residency import ModelPairs
    from diffing_mcp.model_pairs.resolve import resolve_pair

    spec = resolve_pair(reference)
    prepared: dict[str, Any] = {}
    with progress_bar("loading") as progress, ModelPairs().use(spec, progress) as loaded:
        prepared["layers"] = loaded.num_layers
        prepared["vocabulary"] = loaded.vocab_size
        for name, params in requests:
            parts = get_method(name).key_parts(params, spec)
            if "corpus" in parts:
                prepared[f"text of {name}"] = parts["corpus"]["content_hash"][:12]
    return prepared
