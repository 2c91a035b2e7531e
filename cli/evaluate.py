"""`diffing evaluate`: arms x organisms x repeats through one MCP server, graded against ground truth, resumable."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from diffing_mcp.agents.cells import RunningEvaluation
    from diffing_mcp.agents.records import EvaluationPlan, EvaluationRecord
    from diffing_mcp.agents.suite_files import SuiteFile

T = TypeVar("T")

_OF_THE_SUITE = (
    "arms", "investigator", "grader", "grader_repeats", "repeats", "interactions", "seed", "identifier",
    "max_samples", "message_limit", "token_limit", "time_limit",
)  # fmt: skip
"""Options whose place is a suite's file."""


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("evaluate")(evaluate)


def evaluate(
    suite: Annotated[
        str | None,
        typer.Argument(
            help="A suite: the name of a preset, or a YAML file (`diffing evaluations suites` lists and explains)."
        ),
    ] = None,
    organisms: Annotated[
        str | None,
        typer.Option(help="Without a suite: pair references with ground truth, comma-separated: cake_bake,control."),
    ] = None,
    arms: Annotated[
        str, typer.Option(help="Comma-separated: blackbox, method, method:NAME+NAME, placebo, cheat.")
    ] = "blackbox,method",
    investigator: Annotated[
        str,
        typer.Option(
            help=(
                "`baseline` (deterministic, no LLM) or an Inspect model such as anthropic/NAME, openai/NAME, "
                "openai-api/SERVICE/NAME, vllm/NAME."
            )
        ),
    ] = "baseline",
    investigator_url: Annotated[
        str | None, typer.Option(help="Base URL of the investigator's API, for OpenAI-compatible and local servers.")
    ] = None,
    grader: Annotated[
        str,
        typer.Option(
            help=(
                "`none` (only the deterministic fact recall) or an Inspect model that reads findings with the "
                "family's rubric."
            )
        ),
    ] = "none",
    grader_url: Annotated[str | None, typer.Option(help="Base URL of the grader's API.")] = None,
    grader_repeats: Annotated[int, typer.Option(min=1, help="Readings by the LLM grader per finding.")] = 3,
    repeats: Annotated[int, typer.Option(min=1, help="Investigations per organism and arm.")] = 1,
    interactions: Annotated[int, typer.Option(min=0, help="Model interactions each investigation may spend.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first repeat; the others count up.")] = 0,
    identifier: Annotated[
        str | None,
        typer.Option(
            "--id",
            help="Name of the evaluation. Default: derived from the options, so that the same command continues it.",
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help=(
                "MCP endpoint of a running server, on this machine or another; DIFFING_OPERATOR_TOKEN is sent to it "
                "when set. Default: one is started for the run."
            )
        ),
    ] = None,
    overview_samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Texts that the baseline's overview reads. Default: what levels are calibrated on.",
        ),
    ] = None,
    max_samples: Annotated[int, typer.Option(min=1, help="LLM investigations at a time.")] = 4,
    message_limit: Annotated[int, typer.Option(min=1, help="Messages an LLM investigator may exchange.")] = 100,
    token_limit: Annotated[int, typer.Option(min=1, help="Tokens an LLM investigator may use.")] = 500_000,
    time_limit: Annotated[int, typer.Option(min=1, help="Seconds an LLM investigation may take.")] = 3600,
    estimate: Annotated[bool, typer.Option("--estimate", help="Of a suite: only say what it will cost.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the table there: .parquet, .csv or .md.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print plan, summary and records as JSON on stdout and nothing else there.")
    ] = False,
    context: typer.Context = None,  # type: ignore[assignment]  # typer knows no optional one; a program has none
) -> None:
    """Let investigators loose on blinded pairs and grade what they find. Finished cells are kept: the same command
    continues.
    """
    from diffing_mcp.agents.arms import chosen_arms
    from diffing_mcp.agents.cells import plan_identifier
    from diffing_mcp.agents.grading import chosen_organisms
    from diffing_mcp.agents.records import EvaluationPlan
    from diffing_mcp.agents.suite_files import Limits, SuiteFile, plans_of, read_suite, settings_of
    from diffing_mcp.agents.summary import summarise
    from diffing_mcp.agents.table import check_can_be_written, table_of
    from diffing_mcp.cli.output import note, print_json, print_plain, quiet_libraries
    from diffing_mcp.core.errors import InvalidInput

    quiet_libraries()
    if (suite is None) == (organisms is None):
        raise InvalidInput("Name a suite, or pairs with --organisms. `diffing evaluations suites` lists the suites.")
    if output is not None:
        check_can_be_written(output)
    if suite is not None:
        _refuse_options_of_the_suite(context)
        name, contents = read_suite(suite)
        plans = plans_of(name, contents, overview_samples)
    else:
        wanted: dict[str, Any] = {
            "organisms": chosen_organisms(organisms or ""),
            "arms": chosen_arms(arms),
            "investigator": investigator,
            "grader": None if grader == "none" else grader,
            "repeats": repeats,
            "interactions": interactions,
            "seed": seed,
        }
        limits = Limits(
            message_limit=message_limit, token_limit=token_limit, time_limit=time_limit, max_samples=max_samples
        )
        decisive = settings_of(investigator, limits, overview_samples)
        plans = [EvaluationPlan(id=identifier or plan_identifier(wanted | decisive), settings=decisive, **wanted)]
        contents = SuiteFile(organisms=tuple(wanted["organisms"]), grader_repeats=grader_repeats, limits=limits)
    if suite is not None or estimate:
        from diffing_mcp.agents.costs import estimate as estimated

        said = f"{name if suite else plans[0].id}: {estimated(contents, plans).as_text(contents.currency)}"
        if estimate:
            print_plain(said)
            return
        note(said)
    finished = _investigate(plans, contents, url, overview_samples, investigator_url, grader_url)
    records = [record for _, each in finished for record in each]
    table = table_of(finished, contents.prices)
    if output is not None:
        table.write(output)
        note(f"table written to {output}")
    if suite is not None and as_json:
        print_json({"suite": name, "plans": [plan.model_dump(mode="json") for plan in plans],
                    **table.model_dump(mode="json"),
                    "records": [record.model_dump(mode="json") for record in records]})  # fmt: skip
    elif suite is not None:
        print_plain(table.markdown())
    elif as_json:
        print_json(
            {
                "plan": finished[0][0].model_dump(mode="json"),
                "summary": summarise(records).model_dump(mode="json"),
                "records": [record.model_dump(mode="json") for record in records],
            }
        )
    else:
        print_summary(summarise(records))
    if any(record.status == "failed" for record in records):
        raise typer.Exit(1)


def _refuse_options_of_the_suite(context: typer.Context) -> None:
    """Raise InvalidInput for options that a suite would not heed."""
    from diffing_mcp.core.errors import InvalidInput

    said = {name: context.get_parameter_source(name) for name in _OF_THE_SUITE}
    given = [
        max(parameter.opts, key=len)
        for parameter in context.command.params
        if (source := said.get(str(parameter.name))) is not None and source.name == "COMMANDLINE"
    ]
    if given:
        raise InvalidInput(
            f"A suite says by itself what {', '.join(given)} would: copy its file (agents/suites/ has the presets), "
            "change it, and give its path; or leave the suite out and name pairs with --organisms."
        )


def _investigate(
    plans: Sequence[EvaluationPlan],
    suite: SuiteFile,
    url: str | None,
    overview_samples: int | None,
    investigator_url: str | None,
    grader_url: str | None,
) -> list[tuple[EvaluationPlan, list[EvaluationRecord]]]:
    """Run what is not finished of these plans, all with one server."""
    import asyncio

    from diffing_mcp.agents.cells import BaselineOptions, RunningEvaluation, continued
    from diffing_mcp.agents.costs import check_cap, spent_on
    from diffing_mcp.agents.grading import Grading
    from diffing_mcp.agents.records import EvaluationFolder
    from diffing_mcp.cli.output import note
    from diffing_mcp.core.errors import Cancelled

    folders = [EvaluationFolder(plan.id) for plan in plans]

    def may_go_on() -> None:
        check_cap(suite, spent_on([record for folder in folders for record in folder.records()], suite.prices))

    running = []
    for plan, folder in zip(plans, folders, strict=True):
        plan = continued(folder, plan)
        running.append(
            RunningEvaluation(
                plan,
                folder,
                Grading(grader=plan.graded_by, grader_url=grader_url, repeats=suite.grader_repeats),
                url or "",
                BaselineOptions(overview={} if overview_samples is None else {"max_samples": overview_samples}),
                report=lambda finished, total, record: note(progress_line(finished, total, record)),
                may_go_on=may_go_on,
                investigator_url=investigator_url,
                limits=suite.limits.model_dump(),
            )
        )
        note(
            f"evaluation {plan.id}: {len(plan.organisms)} organisms x {len(plan.arms)} arms x {plan.repeats} repeats "
            f"by {plan.investigator}, records in {folder.path}"
        )
    try:
        return asyncio.run(_stopping_on_sigterm(_run(running, url)))
    except asyncio.CancelledError:
        raise Cancelled(
            "Stopped; finished investigations are kept, and the same command goes on with the others (evaluation "
            f"{', '.join(plan.id for plan in plans)})."
        ) from None


async def _stopping_on_sigterm(work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; SIGTERM and ctrl-C cancel it, so that the server it has started ends too.

    Raises:
        CancelledError: SIGTERM ended it.
        KeyboardInterrupt: ctrl-C ended it.
    """
    import asyncio
    import signal

    from diffing_mcp.cli.stopping import say_stopping

    task = asyncio.ensure_future(work)
    by: list[int] = []

    def stop(number: int) -> None:
        by.append(number)
        say_stopping()
        task.cancel()

    with contextlib.suppress(NotImplementedError):  # no signal handlers on Windows' event loop
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if signal.SIGINT in by:
            raise KeyboardInterrupt from None
        raise


async def _run(
    evaluations: Sequence[RunningEvaluation], url: str | None
) -> list[tuple[EvaluationPlan, list[EvaluationRecord]]]:
    from diffing_mcp.agents.evaluation import run_evaluation
    from diffing_mcp.agents.server_process import server_process

    if url is not None or all(each.is_complete() for each in evaluations):
        return [(each.plan, await run_evaluation(each)) for each in evaluations]
    async with server_process(evaluations[0].folder.path / "server.log") as started:
        for each in evaluations:
            each.url = started
        return [(each.plan, await run_evaluation(each)) for each in evaluations]


def progress_line(finished: int, total: int, record: EvaluationRecord) -> str:
    """One finished cell in a line."""
    if record.status == "failed":
        return f"[{finished}/{total}] {record.organism} {record.arm} r{record.repeat}: failed: {record.error}"
    recall = f", fact recall {record.fact_recall.recall:.2f}" if record.fact_recall and not record.null else ""
    return (
        f"[{finished}/{total}] {record.organism} {record.arm} r{record.repeat}: {record.finding.verdict}{recall}, "
        f"{record.seconds:.0f} s"
    )


def print_summary(summary: Any) -> None:
    """The table and the false-positive rates."""
    from diffing_mcp.cli.output import print_plain, print_rows

    print_rows(summary.columns(), [row.cells() for row in summary.rows])
    for line in summary.notes():
        print_plain(line)
