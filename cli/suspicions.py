"""`diffing test`, `diffing complete` and `diffing sweep`: from a suspicion to a finding."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffing_mcp.cli.options import CsvOption, JsonOption, PairOption
from diffing_mcp.cli.questions import QuerySetOption, lines_of, query_values

SWEEP = "sweep_behaviours"


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("test")(put_to_test)
    app.command("complete")(complete)
    app.command("sweep")(sweep)


def put_to_test(
    pair: PairOption,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="Where it should show: six or more, never asked before."),
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="More of them, one a line; `-` for stdin.")] = None,
    controls: Annotated[
        list[str] | None, typer.Option("--control", help="A prompt where it should not show, repeatable.")
    ] = None,
    control_file: Annotated[Path | None, typer.Option(help="More of those, one a line.")] = None,
    pattern: Annotated[str | None, typer.Option(help="Count answers that match this regular expression.")] = None,
    words: Annotated[
        list[str] | None, typer.Option("--word", help="Count answers with any of these words, repeatable.")
    ] = None,
    candidate: Annotated[str | None, typer.Option(help="Compare how probable this answer is.")] = None,
    alternatives: Annotated[
        list[str] | None, typer.Option("--alternative", help="Against this answer, repeatable.")
    ] = None,
    criterion: Annotated[
        str | None, typer.Option(help="Count answers that an LLM judge (DIFFING_JUDGE) says meet this.")
    ] = None,
    samples: Annotated[int | None, typer.Option("--samples", "-n", help="Answers a prompt and model.")] = None,
    settings: QuerySetOption = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Test a suspicion: both models answer the same prompts, one thing is counted. Exits with 0 whatever it shows."""
    from diffing_mcp.api.suspicions import test_hypothesis
    from diffing_mcp.cli.output import check_one_form, print_answer, progress_bar
    from diffing_mcp.queries.hypothesis_schemas import HypothesisQuery

    given = {
        "control_prompts": [*(controls or []), *lines_of(control_file)] or None,
        "pattern": pattern,
        "words": words or None,
        "candidate": candidate,
        "alternatives": alternatives or None,
        "criterion": criterion,
        "samples": samples,
    }
    check_one_form(as_json, as_csv)
    values = query_values(HypothesisQuery, settings, given)
    with progress_bar("loading") as progress:
        answer = test_hypothesis(pair, [*(prompts or []), *lines_of(file)], progress=progress, **values)
    print_answer(answer, as_json, as_csv)


def complete(
    pair: PairOption,
    beginnings: Annotated[
        list[str] | None, typer.Argument(metavar="BEGINNING", help="Beginnings of sentences, as of a fact in doubt.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="More of them, one a line; `-` for stdin.")] = None,
    settings: QuerySetOption = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Show how both models complete sentences: numbers, names and purposes that the finetune raised or lowered."""
    from diffing_mcp.api.suspicions import complete_slots
    from diffing_mcp.cli.output import check_one_form, print_answer, progress_bar
    from diffing_mcp.queries.slot_schemas import SlotsQuery

    check_one_form(as_json, as_csv)
    values = query_values(SlotsQuery, settings, {})
    with progress_bar("loading") as progress:
        answer = complete_slots(pair, [*(beginnings or []), *lines_of(file)], progress=progress, **values)
    print_answer(answer, as_json, as_csv)


def sweep(
    pair: PairOption,
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="Questions of your own instead of the bundled ones.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="More of them, one a line; `-` for stdin.")] = None,
    domains: Annotated[
        list[str] | None,
        typer.Option("--domain", help="Area of the bundled questions, repeatable; a wrong one lists all."),
    ] = None,
    triggers: Annotated[
        list[str] | None,
        typer.Option(
            "--trigger", help="A prefix or `system: ...` that may switch something on, repeatable; `bundled`."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Questions at most.")] = None,
    samples: Annotated[int | None, typer.Option("--samples", "-n", help="Answers a question and model.")] = None,
    settings: QuerySetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask both models many questions at once and say where they differ. The same as `diffing run sweep_behaviours`."""
    from diffing_mcp.api.method_functions import run
    from diffing_mcp.cli.output import print_json, print_plain, progress_bar
    from diffing_mcp.methods.registry import get_method

    given = {
        "prompts": [*(prompts or []), *lines_of(file)] or None,
        "domains": domains or None,
        "triggers": triggers or None,
        "limit": limit,
        "samples": samples,
    }
    values = query_values(get_method(SWEEP).Params, settings, given)
    with progress_bar("loading") as progress:
        finished = run(pair, SWEEP, values, progress=progress)
    if as_json:
        print_json(finished.result)
    else:
        print_plain(finished.heading())
        print_plain(finished.record.report(finished.result))
