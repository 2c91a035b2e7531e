"""`diffing batch`: pairs x methods x seeds, collections and suites, by one worker here or by several on Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from diffing_mcp.scaling.dispatch import Crew
    from diffing_mcp.scaling.mirror import Mirror, MirrorFailed
    from diffing_mcp.scaling.tasks import Outcome, Task


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("batch")(batch)


def batch(
    file: Annotated[Path, typer.Argument(help="YAML: pairs, methods, seeds, activations, suites (docs/scale.md).")],
    ray: Annotated[
        str | None,
        typer.Option(help="Address of a Ray cluster, `auto` for the one of this machine, `local` to start one here."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Workers on Ray, each with its own models.")] = 1,
    gpus_each: Annotated[
        float | None, typer.Option(min=0, help="GPUs of a worker. Default: the cluster's, at most one each.")
    ] = None,
    mirror: Annotated[
        str | None,
        typer.Option(help="Address (s3://, gs://, file://) through which workers without a common disk share results."),
    ] = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Only say what is left to do and its cost.")] = False,
    tokens_per_second: Annotated[
        float | None, typer.Option(min=0.001, help="For the estimate: tokens that one device reads a second.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")] = False,
) -> None:
    """Do everything that a file asks for. What is finished is passed over: start the same batch again at any time."""
    from diffing_mcp.cli.output import note, print_json, print_plain, print_rows, progress_bar, quiet_libraries
    from diffing_mcp.core.errors import InvalidInput
    from diffing_mcp.scaling.batch_file import read_batch, tasks_of
    from diffing_mcp.scaling.dispatch import run_tasks
    from diffing_mcp.scaling.mirror import Mirror

    quiet_libraries()
    if ray is None and (workers > 1 or gpus_each is not None):
        raise InvalidInput("--workers and --gpus-each need --ray; without it one worker runs here.")
    if mirror is not None and (copied := Mirror(mirror).pull()):
        note(f"{copied} runs and records copied from {mirror}")
    tasks = tasks_of(read_batch(file))
    if estimate:
        found = _estimate(tasks, tokens_per_second)
        if as_json:
            print_json(found)
        else:
            print_plain(_estimate_text(found))
        return

    def report(finished: int, total: int, outcome: Outcome) -> None:
        said = outcome.error if outcome.state == "failed" else ", ".join(outcome.products)
        note(f"[{finished}/{total}] {outcome.task.label}: {outcome.state} ({said}), {outcome.seconds:.0f} s")

    with _crew(ray, workers, gpus_each, mirror) as crew, progress_bar("batch") as progress:
        outcomes = run_tasks(tasks, crew, report, progress)
    failed_copy = _copied_both_ways(Mirror(mirror), outcomes) if mirror is not None else None
    if as_json:
        print_json([outcome.model_dump(mode="json") for outcome in outcomes])
    else:
        rows = [
            (each.task.label, each.state, each.error or ", ".join(each.products), f"{each.seconds:.0f}", each.worker)
            for each in outcomes
        ]
        print_rows(("task", "state", "what came of it", "seconds", "worker"), rows)
    if failed_copy is not None:
        raise failed_copy
    if any(outcome.state == "failed" for outcome in outcomes):
        raise typer.Exit(1)


def _copied_both_ways(mirror: Mirror, outcomes: Sequence[Outcome]) -> MirrorFailed | None:
    """Copy what was reused to the mirror, and what others have done from it; what went wrong, which must not take what
    is said of the batch with it.
    """
    from diffing_mcp.scaling.mirror import MirrorFailed

    try:
        for outcome in outcomes:
            if outcome.state == "reused":  # a former batch may have been cut off before it was copied
                mirror.push(outcome.task, outcome.products)
        mirror.pull()
    except MirrorFailed as error:
        return error
    return None


@contextmanager
def _crew(ray: str | None, workers: int, gpus_each: float | None, mirror: str | None) -> Iterator[Crew]:
    from contextlib import closing

    from diffing_mcp.scaling.dispatch import LocalCrew
    from diffing_mcp.scaling.mirror import Mirror
    from diffing_mcp.scaling.worker import Worker

    if ray is None:
        with closing(Worker(mirror=Mirror(mirror) if mirror else None)) as worker:
            yield LocalCrew(worker)
        return
    from diffing_mcp.scaling.ray_workers import ray_crew

    address = None if ray == "local" else ray
    with ray_crew(workers, address=address, gpus_each=gpus_each, mirror=mirror) as crew:
        yield crew


def _estimate(tasks: Sequence[Task], tokens_per_second: float | None) -> dict[str, float | None]:
    """What is left of a batch. Evaluations are counted without their models' tokens, which nobody knows before."""
    from diffing_mcp.methods.contract import PairSize
    from diffing_mcp.scaling.tasks import EvaluationTask, known_size

    left = [task for task in tasks if task.products() is None]
    pairs = {task.pair for task in left if not isinstance(task, EvaluationTask)}
    sizes = {pair: known_size(pair) for pair in pairs}
    read = [PairSize() if isinstance(task, EvaluationTask) else sizes[task.pair] for task in left]
    costs = [task.estimate(size) for task, size in zip(left, read, strict=True)]
    return {
        "tasks": len(tasks),
        "left": len(left),
        "tokens_read": sum(cost.tokens for cost in costs),
        "tokens_generated": sum(cost.generated_tokens for cost in costs),
        "bytes": sum(cost.bytes for cost in costs),
        "pairs_of_unknown_size": sum(size.d_model is None for size in sizes.values()),
        "device_hours": sum(cost.work for cost in costs) / tokens_per_second / 3600 if tokens_per_second else None,
    }


def _estimate_text(found: dict[str, float | None]) -> str:
    hours, unknown = found["device_hours"], found["pairs_of_unknown_size"]
    return (
        f"{found['left']:,} of {found['tasks']:,} tasks are left: {found['tokens_read']:,} tokens read and "
        f"{found['tokens_generated']:,} generated, both sides together, {(found['bytes'] or 0) / 1e9:.2f} GB on disk, "
        + (f"{hours:.1f} device hours." if hours is not None else "device hours with --tokens-per-second.")
        + (
            f" The files of {unknown:,} pairs are not on this machine: they are counted as small models, and their "
            "activations not at all on disk."
            if unknown
            else ""
        )
    )
