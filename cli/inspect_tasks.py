"""The investigation as a task for Inspect's own command line, with its viewer, eval sets and log tools:

    diffing serve --http & inspect eval cli/inspect_tasks.py@investigate --model anthropic/NAME -T arm=method -T
    organisms=cake_bake,control -T url=http://127.0.0.1:8931/mcp

`diffing evaluate` runs the same task and keeps records, resumes and prints the table; this is for those who live in
Inspect. DIFFING_OPERATOR_TOKEN is sent to the server when it is set.
"""

from __future__ import annotations

from inspect_ai import Task, task


@task
def investigate(
    arm: str = "method",
    organisms: str = "cake_bake,control,identical",
    url: str = "http://127.0.0.1:8931/mcp",
    interactions: int = 10,
    repeats: int = 1,
    grader: str | None = None,
    identifier: str | None = None,
    message_limit: int = 100,
    token_limit: int = 500_000,
    time_limit: int = 3600,
) -> Task:
    """One arm over some organisms.

    Args:
        arm: one of `diffing_mcp.agents.arms`.
        organisms: pair references with ground truth, comma-separated.
        url: MCP endpoint of the running server.
        interactions: model interactions of each investigation.
        repeats: investigations of each organism.
        grader: Inspect model that reads findings with the rubric; None: fact recall alone.
        identifier: the evaluation under which records are kept for the panel; None: one for each model.
        message_limit: messages of an investigation at most.
        token_limit: tokens of an investigation at most.
        time_limit: seconds of an investigation at most.

    Raises:
        InvalidInput: the evaluation was made with another model, grader or budget: another `identifier` keeps both.
    """
    from inspect_ai.model import get_model

    from diffing_mcp.agents.arms import chosen_arms
    from diffing_mcp.agents.cells import RunningEvaluation, cells_of, check_continues
    from diffing_mcp.agents.grading import Grading, chosen_organisms
    from diffing_mcp.agents.inspect_task import investigation_task
    from diffing_mcp.agents.names import as_identifier
    from diffing_mcp.agents.records import EvaluationFolder, EvaluationPlan, EvaluationRecord
    from diffing_mcp.core.errors import UnknownName

    (chosen,) = chosen_arms(arm)
    model = str(get_model())  # Inspect makes the task once for each model, whose records are its own
    plan = EvaluationPlan(
        id=identifier or as_identifier(f"inspect-{model}"),
        organisms=chosen_organisms(organisms),
        arms=[chosen],
        investigator=model,
        grader=grader,
        repeats=repeats,
        interactions=interactions,
    )
    folder = EvaluationFolder(plan.id)
    try:  # an arm is a task of its own, and all of them are one evaluation
        stored = folder.plan()
    except UnknownName:
        stored = plan
    check_continues(stored, plan)
    both = {
        "arms": list(dict.fromkeys([*stored.arms, *plan.arms])),
        "organisms": list(dict.fromkeys([*stored.organisms, *plan.organisms])),
        "repeats": max(stored.repeats, plan.repeats),
        "created_at": stored.created_at,
        "regraded": stored.regraded,
    }
    folder.write_plan(plan.model_copy(update=both))
    limits = {"message_limit": message_limit, "token_limit": token_limit, "time_limit": time_limit}
    running = RunningEvaluation(plan, folder, Grading(stored.graded_by), url, limits=limits)

    def keep(record: EvaluationRecord) -> None:
        folder.write(record)

    return investigation_task(running, chosen, cells_of(plan), keep)
