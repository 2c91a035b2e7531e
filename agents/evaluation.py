"""Runs an evaluation. Each finished cell is stored at once, so that a second call continues where the first one
stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from diffing_mcp.agents.arms import CHEAT
from diffing_mcp.agents.baseline import investigate
from diffing_mcp.agents.cells import BASELINE, Cell, RunningEvaluation, cells_of
from diffing_mcp.agents.costs import CapReached
from diffing_mcp.agents.grading import Grades, Grading, scores_of
from diffing_mcp.agents.mcp_session import Session, connect
from diffing_mcp.agents.records import BY_WORDS, EvaluationFolder, EvaluationRecord
from diffing_mcp.core.errors import DiffingError


async def run_evaluation(running: RunningEvaluation) -> list[EvaluationRecord]:
    """Run every cell that has no completed record yet; returns the records of all cells in the plan's order.

    Raises:
        CapReached: the suite has spent what it may; what is finished is stored.
        ModelNotAvailable: the grader cannot be used; nothing was begun.
    """
    running.folder.write_plan(running.plan)
    cells = cells_of(running.plan)
    finished = 0
    pending: list[Cell] = []
    for cell in cells:
        record = running.folder.get(cell.id, cell.organism)
        if record is not None and record.status == "completed":
            finished += 1
            running.report(finished, len(cells), record)
        else:
            pending.append(cell)

    if pending:
        running.grading.check()

    def done(record: EvaluationRecord) -> None:
        nonlocal finished
        finished += 1
        running.folder.write(record)
        running.report(finished, len(cells), record)

    for cell in pending:
        if _by_program(running, cell):
            done(await _baseline_cell(running, cell))
    if by_model := [cell for cell in pending if not _by_program(running, cell)]:
        from diffing_mcp.agents.inspect_task import run_cells  # Inspect is in the extra `eval`

        await run_cells(running, by_model, done)
    return [record for cell in cells if (record := running.folder.get(cell.id, cell.organism)) is not None]


async def run_cell(running: RunningEvaluation, cell: Cell) -> EvaluationRecord:
    """Run one cell, store its record and return it.

    Raises:
        CapReached: the suite has spent what it may.
        ModelNotAvailable: the grader cannot be used; nothing was begun.
    """
    running.grading.check()
    if _by_program(running, cell):
        record = await _baseline_cell(running, cell)
        running.folder.write(record)
        return record
    from diffing_mcp.agents.inspect_task import run_cells

    def keep(record: EvaluationRecord) -> None:
        running.folder.write(record)

    await run_cells(running, [cell], keep)
    return running.folder.get(cell.id, cell.organism) or running.blank_record(cell)


def _by_program(running: RunningEvaluation, cell: Cell) -> bool:
    """Whether no language model investigates: the cheat is the same program whoever investigates in the other arms."""
    return running.plan.investigator == BASELINE or cell.arm == CHEAT


async def _baseline_cell(running: RunningEvaluation, cell: Cell) -> EvaluationRecord:
    record = running.blank_record(cell)
    options = replace(running.baseline, interactions=running.plan.interactions, seed=cell.seed)
    started = time.monotonic()
    session: Session | None = None
    try:
        opened = await running.open(cell)
        record.label, record.investigation_id = opened.label, opened.id
        async with connect(running.url, opened.token) as session:
            await investigate(session, cell.arm, options)
    except CapReached:
        raise
    except Exception as error:
        # one cell that fails must not take the others with it; the record keeps the reason and a second call tries
        # again
        record.status, record.error = "failed", _reason(error)
    record.seconds = round(time.monotonic() - started, 2)
    if session is not None:
        record.transcript = session.messages
    try:
        await running.complete(record)
    except Exception as error:
        record.status, record.error = "failed", _reason(error)
    return record


async def regrade(
    folder: EvaluationFolder, grading: Grading, note: Callable[[str], None] = lambda said: None
) -> list[EvaluationRecord]:
    """Grade every finished record of a stored evaluation anew and store it. What an LLM grader has read before stays
    where `grading` has none, or where its model gives no usable answer: `note` is told how often and why.

    Raises:
        UnknownName: there is no such evaluation.
    """
    folder.plan()
    finished = [record for record in folder.records() if record.status == "completed"]
    silent: list[str] = []
    for graded in finished:
        grades = await grading.grade(graded.organism, graded.finding, graded.tests)
        if grading.grader is not None and not scores_of(grades.readings):
            silent += [reading.reasoning for reading in grades.readings]
        folder.amend(graded.cell_id, partial(_take, grades))
    if silent:
        note(f"{len(silent)} of {len(finished)} findings keep the grades they had: {silent[-1]}")
    if grading.grader is not None and len(silent) < len(finished):
        folder.write_plan(folder.plan().model_copy(update={"regraded": grading.grader}))
    return folder.records()


def _take(grades: Grades, record: EvaluationRecord) -> None:
    """Put new grades in place of those that a record has, as far as there are new ones."""
    record.fact_recall = grades.fact_recall
    record.grading_usage = [*record.grading_usage, *grades.usage]
    if scores_of(grades.readings) or record.mean_score is None:
        record.hypothesis_grades = grades.readings or record.hypothesis_grades
    read = [each for each in grades.claims if each.grader == BY_WORDS or each.problem is None]
    former = [each for each in record.claims if each.grader != BY_WORDS]
    record.claims = [*read, *former] if len(read) == 1 and former else grades.claims


def _reason(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup) and error.exceptions:
        return _reason(error.exceptions[0])
    return error.message if isinstance(error, DiffingError) else f"{type(error).__name__}: {error}"
