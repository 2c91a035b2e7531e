"""Runs an evaluation. Each finished cell is stored at once, so that a second call continues where the first one
stopped.
"""

from __future__ import annotations

import time
from dataclasses import replace

from diffing_mcp.agents.baseline import investigate
from diffing_mcp.agents.mcp_session import Session, connect
from diffing_mcp.agents.records import EvaluationRecord
from diffing_mcp.agents.suite import BASELINE, Cell, Suite, cells_of
from diffing_mcp.core.errors import DiffingError


async def run_evaluation(suite: Suite) -> list[EvaluationRecord]:
    """Run every cell that has no completed record yet; returns the records of all cells in the plan's order."""
    suite.folder.write_plan(suite.plan)
    cells = cells_of(suite.plan)
    finished = 0
    pending: list[Cell] = []
    for cell in cells:
        record = suite.folder.get(cell.id)
        if record is not None and record.status == "completed":
            finished += 1
            suite.report(finished, len(cells), record)
        else:
            pending.append(cell)

    def done(record: EvaluationRecord) -> None:
        nonlocal finished
        finished += 1
        suite.folder.write(record)
        suite.report(finished, len(cells), record)

    if suite.plan.investigator == BASELINE:
        for cell in pending:
            done(await _baseline_cell(suite, cell))
    elif pending:
        from diffing_mcp.agents.inspect_task import run_cells  # Inspect is in the extra `eval`

        await run_cells(suite, pending, done)
    return [record for cell in cells if (record := suite.folder.get(cell.id)) is not None]


async def _baseline_cell(suite: Suite, cell: Cell) -> EvaluationRecord:
    record = suite.blank_record(cell)
    options = replace(suite.baseline, interactions=suite.plan.interactions, seed=cell.seed)
    started = time.monotonic()
    session: Session | None = None
    try:
        opened = await suite.open(cell)
        record.label, record.investigation_id = opened.label, opened.id
        async with connect(suite.url, opened.token) as session:
            await investigate(session, cell.arm, options)
    except Exception as error:
        # one cell that fails must not take the others with it; the record keeps the reason and a second call tries
        # again
        record.status, record.error = "failed", _reason(error)
    record.seconds = round(time.monotonic() - started, 2)
    if session is not None:
        record.transcript = session.messages
    await suite.complete(record)
    return record


def _reason(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup) and error.exceptions:
        return _reason(error.exceptions[0])
    return error.message if isinstance(error, DiffingError) else f"{type(error).__name__}: {error}"
