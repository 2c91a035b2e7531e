"""`diffing evaluate`: arms x organisms x repeats through one MCP server, graded against ground truth, resumable."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffing_mcp.cli.options import JsonOption

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from diffing_mcp.agents.records import EvaluationRecord
    from diffing_mcp.agents.suite import Suite


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("evaluate")(evaluate)
    app.command("evaluations")(evaluations)


def evaluate(
    organisms: Annotated[
        str,
        typer.Option(help="Pair references with ground truth, comma-separated: cake_bake,cake_bake/mix1-1p0,control."),
    ],
    arms: Annotated[str, typer.Option(help="blackbox, method, or both.")] = "blackbox,method",
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
        int, typer.Option(min=1, help="Texts the baseline's method arm lets the overview read.")
    ] = 128,
    max_samples: Annotated[int, typer.Option(min=1, help="LLM investigations at a time.")] = 4,
    message_limit: Annotated[int, typer.Option(min=1, help="Messages an LLM investigator may exchange.")] = 100,
    token_limit: Annotated[int, typer.Option(min=1, help="Tokens an LLM investigator may use.")] = 500_000,
    time_limit: Annotated[int, typer.Option(min=1, help="Seconds an LLM investigation may take.")] = 3600,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print plan, summary and records as JSON on stdout and nothing else there.")
    ] = False,
) -> None:
    """Let investigators loose on blinded pairs and grade what they find. Finished cells are kept: the same command
    continues.
    """
    import asyncio

    from diffing_mcp.agents.grading import Grading, chosen_organisms
    from diffing_mcp.agents.records import ARMS, EvaluationFolder, EvaluationPlan
    from diffing_mcp.agents.suite import BASELINE, BaselineOptions, Suite, check_continues, plan_identifier
    from diffing_mcp.agents.summary import summarise
    from diffing_mcp.cli.output import note, print_json, quiet_libraries
    from diffing_mcp.core.errors import Cancelled, InvalidInput, UnknownName

    quiet_libraries()
    chosen_arms = list(dict.fromkeys(part.strip() for part in arms.split(",") if part.strip()))
    if not chosen_arms or (wrong := [arm for arm in chosen_arms if arm not in ARMS]):
        raise InvalidInput(
            f"--arms takes {' and '.join(ARMS)}, comma-separated; got {arms!r}."
            if not chosen_arms
            else f"There is no arm {wrong[0]!r}; arms: {', '.join(ARMS)}."
        )
    wanted: dict[str, Any] = {
        "organisms": chosen_organisms(organisms),
        "arms": chosen_arms,
        "investigator": investigator,
        "grader": None if grader == "none" else grader,
        "repeats": repeats,
        "interactions": interactions,
        "seed": seed,
    }
    settings_of_baseline = {"overview_samples": overview_samples} if investigator == BASELINE else {}
    plan = EvaluationPlan(id=identifier or plan_identifier(wanted | settings_of_baseline), **wanted)
    folder = EvaluationFolder(plan.id)
    try:
        stored = folder.plan()
    except UnknownName:
        pass
    else:
        check_continues(stored, plan)
        plan = plan.model_copy(update={"created_at": stored.created_at})
    grading = Grading(grader=plan.grader, grader_url=grader_url, repeats=grader_repeats)
    suite = Suite(
        plan,
        folder,
        grading,
        url or "",
        BaselineOptions(overview={"max_samples": overview_samples}),
        report=lambda finished, total, record: note(progress_line(finished, total, record)),
        investigator_url=investigator_url,
        limits={
            "message_limit": message_limit,
            "token_limit": token_limit,
            "time_limit": time_limit,
            "max_samples": max_samples,
        },
    )
    note(
        f"evaluation {plan.id}: {len(plan.organisms)} organisms x {len(plan.arms)} arms x {plan.repeats} repeats by "
        f"{plan.investigator}, records in {folder.path}"
    )
    try:
        records = asyncio.run(_stopping_on_sigterm(_run(suite, url)))
    except asyncio.CancelledError:
        raise Cancelled(
            f"Stopped; finished cells are kept, and the same command goes on with the others (evaluation {plan.id})."
        ) from None
    summary = summarise(records)
    if as_json:
        print_json(
            {
                "plan": plan.model_dump(mode="json"),
                "summary": summary.model_dump(mode="json"),
                "records": [record.model_dump(mode="json") for record in records],
            }
        )
    else:
        print_summary(summary)
    if any(record.status == "failed" for record in records):
        raise typer.Exit(1)


def evaluations(
    as_json: JsonOption = False,
) -> None:
    """List the stored evaluations, newest first."""
    from diffing_mcp.agents.records import EvaluationFolder, list_evaluations
    from diffing_mcp.cli.output import print_json, print_rows

    plans = list_evaluations()
    if as_json:
        print_json([plan.model_dump(mode="json") for plan in plans])
        return
    rows = [
        (
            plan.id,
            plan.created_at,
            plan.investigator,
            ",".join(plan.organisms),
            ",".join(plan.arms),
            f"{sum(record.status == 'completed' for record in EvaluationFolder(plan.id).records())}/{len(plan.organisms) * len(plan.arms) * plan.repeats}",  # noqa: E501
        )
        for plan in plans
    ]
    print_rows(("evaluation", "made", "investigator", "organisms", "arms", "finished"), rows)


async def _stopping_on_sigterm(work: Coroutine[Any, Any, list[EvaluationRecord]]) -> list[EvaluationRecord]:
    """Run `work`; SIGTERM and ctrl-C cancel it, so that the server it has started ends too."""
    import asyncio
    import signal

    from diffing_mcp.cli.stopping import say_stopping

    task = asyncio.ensure_future(work)

    def stop() -> None:
        say_stopping()
        task.cancel()

    with contextlib.suppress(NotImplementedError):  # no signal handlers on Windows' event loop
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)
    return await task


async def _run(suite: Suite, url: str | None) -> list[EvaluationRecord]:
    from diffing_mcp.agents.evaluation import run_evaluation
    from diffing_mcp.agents.server_process import server_process

    if url is not None or suite.is_complete():
        return await run_evaluation(suite)
    async with server_process(suite.folder.path / "server.log") as started:
        suite.url = started
        return await run_evaluation(suite)


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
