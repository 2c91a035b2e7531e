"""An investigation as a task: a worker has a server of its own, so that the models of each GPU answer its own
investigators.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from diffing_mcp.core.atomic_files import held
from diffing_mcp.core.errors import DiffingError, UnknownName
from diffing_mcp.core.progress import Progress

if TYPE_CHECKING:
    from diffing_mcp.agents.suite_files import SuiteFile


class TaskFailed(DiffingError):
    """An investigation ended without a record that counts; the message holds its reason."""

    code = "task_failed"


@contextmanager
def started_server(worker: str) -> Iterator[str]:
    """The MCP endpoint of a server process that lives as long as the context.

    Raises:
        ServerDidNotStart: with the end of its log.
    """
    from anyio.from_thread import start_blocking_portal

    from diffing_mcp.agents.server_process import server_process
    from diffing_mcp.core.settings import settings

    log = settings().data_folder / "batches" / f"server-{worker}.log"
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(server_process(log)) as url:
        yield url


def investigate(suite: str, contents: SuiteFile, evaluation: str, cell: str, url: str, progress: Progress) -> str:
    """Run one cell of a suite of that name against the server at `url`; its name. While another process has it, that
    one is awaited and its record kept: an investigation is paid once.

    Raises:
        UnknownName: the suite has no such cell.
        InvalidInput: what is stored under the evaluation's id is another one.
        TaskFailed: the investigation failed.
        Cancelled: from `progress`, while another process has it.
    """
    from filelock import FileLock

    from diffing_mcp.agents.cells import RunningEvaluation, cells_of, continued
    from diffing_mcp.agents.costs import check_cap, spent_on
    from diffing_mcp.agents.evaluation import run_cell
    from diffing_mcp.agents.grading import Grading
    from diffing_mcp.agents.records import EvaluationFolder
    from diffing_mcp.agents.suite_files import plans_of

    plans = plans_of(suite, contents)
    plan = next((plan for plan in plans if plan.id == evaluation), None)
    found = next((each for each in cells_of(plan) if each.id == cell), None) if plan is not None else None
    if plan is None or found is None:
        raise UnknownName(
            f"Suite {suite} has no cell {cell} in {evaluation} here: the batch was started by another version of this "
            "project."
        )
    folders = [EvaluationFolder(each.id) for each in plans]
    folder = EvaluationFolder(plan.id)
    plan = continued(folder, plan)
    folder.write_plan(plan)
    running = RunningEvaluation(
        plan,
        folder,
        Grading(grader=plan.graded_by, repeats=contents.grader_repeats),
        url,
        may_go_on=lambda: check_cap(
            contents, spent_on([record for each in folders for record in each.records()], contents.prices)
        ),
        limits=contents.limits.model_dump(),
    )
    with held(FileLock(folder.path / f".{found.id}.lock"), progress, "another process has this investigation"):
        there = folder.get(found.id, found.organism)
        if there is None or there.status != "completed":
            record = asyncio.run(run_cell(running, found))
            if record.status != "completed":
                raise TaskFailed(record.error or "the investigation failed")
    return found.id
