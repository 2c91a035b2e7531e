"""`diffing evaluations`: what was evaluated, the suites there are, and grading anew without running again."""

from __future__ import annotations

from typing import Annotated

import typer

from diffing_mcp.cli.agreement import agreement
from diffing_mcp.cli.help_sections import Sections
from diffing_mcp.cli.options import JsonOption


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(
        cls=Sections, help="Stored evaluations and suites.", invoke_without_command=True, no_args_is_help=False
    )
    group.callback()(evaluations)
    group.command("suites")(suites)
    group.command("regrade")(regrade)
    group.command("agreement")(agreement)
    group.command("validate")(validate)
    app.add_typer(group, name="evaluations")


def evaluations(
    context: typer.Context,
    as_json: JsonOption = False,
) -> None:
    """List the stored evaluations, newest first."""
    if context.invoked_subcommand is not None:
        return
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


def suites(
    as_json: JsonOption = False,
) -> None:
    """List the suites that come with the package; a file of your own has the same fields."""
    from diffing_mcp.agents.suite_files import SuiteFile, presets
    from diffing_mcp.cli.output import print_json, print_plain, print_rows

    known = presets()
    if as_json:
        print_json({name: suite.model_dump(mode="json") for name, suite in known.items()})
        return
    print_rows(
        ("suite", "pairs", "arms", "interactions", "repeats", "what it is"),
        [
            (
                name,
                str(len(suite.organisms)),
                ", ".join(suite.arms),
                ", ".join(str(budget) for budget in suite.interactions),
                str(suite.repeats),
                " ".join(suite.description.split()),
            )
            for name, suite in known.items()
        ],
    )
    print_plain(f"Fields of a suite's YAML file: {', '.join(SuiteFile.model_fields)}.")


def regrade(
    evaluation: Annotated[str, typer.Argument(help="Id of a stored evaluation.")],
    grader: Annotated[
        str, typer.Option(help="`none` (the deterministic grade alone) or an Inspect model that reads the findings.")
    ] = "none",
    grader_url: Annotated[str | None, typer.Option(help="Base URL of the grader's API.")] = None,
    grader_repeats: Annotated[int, typer.Option(min=1, help="Readings per finding.")] = 3,
) -> None:
    """Grade the stored findings of an evaluation anew, without asking an investigator or a model again."""
    import asyncio

    from diffing_mcp.agents.evaluation import regrade as graded_anew
    from diffing_mcp.agents.grading import Grading
    from diffing_mcp.agents.records import EvaluationFolder
    from diffing_mcp.agents.summary import summarise
    from diffing_mcp.cli.evaluate import print_summary
    from diffing_mcp.cli.output import note

    said: list[str] = []
    grading = Grading(grader=None if grader == "none" else grader, grader_url=grader_url, repeats=grader_repeats)
    records = asyncio.run(graded_anew(EvaluationFolder(evaluation), grading, said.append))
    print_summary(summarise(records))
    for line in said:
        note(f"diffing: {line}")
    if said:
        raise typer.Exit(1)


def validate(
    evaluation: Annotated[str, typer.Argument(help="Id of a stored evaluation.")],
    interactions: Annotated[int, typer.Option(min=12, help="Model interactions for each finding.")] = 24,
    url: Annotated[str | None, typer.Option(help="MCP endpoint of a running server; one is started if none.")] = None,
) -> None:
    """Test the stored findings of a difference anew, on fresh prompts, by a program that did not propose them."""
    import asyncio

    from diffing_mcp.agents.records import EvaluationFolder
    from diffing_mcp.agents.server_process import server_process
    from diffing_mcp.agents.table import table_of
    from diffing_mcp.agents.validation import validate_findings
    from diffing_mcp.cli.output import print_plain

    folder = EvaluationFolder(evaluation)
    plan = folder.plan()

    async def validated() -> None:
        if url is not None:
            await validate_findings(url, folder, interactions)
            return
        async with server_process(folder.path / "server.log") as started:
            await validate_findings(started, folder, interactions)

    asyncio.run(validated())
    print_plain(table_of([(plan, folder.records())]).markdown())
