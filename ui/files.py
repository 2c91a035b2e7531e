"""What the panel reads: evaluation records and runs under one data folder. Files that changed are read anew, so a
refresh shows what is there now.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from diffing_mcp.agents.records import EvaluationFolder, EvaluationPlan, EvaluationRecord, list_evaluations
from diffing_mcp.core.errors import DiffingError
from diffing_mcp.core.remembered import Remembered
from diffing_mcp.methods.runs.store import RunRecord, RunStore


@dataclass(frozen=True)
class Evaluation:
    """A plan with the records there are so far, without the texts of their transcripts (`PanelFiles.record`)."""

    plan: EvaluationPlan
    records: list[EvaluationRecord]

    @property
    def cells(self) -> int:
        """How many cells the plan has."""
        return len(self.plan.organisms) * len(self.plan.arms) * self.plan.repeats

    @property
    def complete(self) -> bool:
        """Whether every cell has a record."""
        return len(self.records) >= self.cells


class PanelFiles:
    """The data folder as the panel sees it."""

    def __init__(self, data_folder: Path) -> None:
        self.data_folder = data_folder
        self._outlines = Remembered(_outline)

    @cached_property
    def runs(self) -> RunStore:
        """The store of finished runs."""
        return RunStore(self.data_folder / "runs")

    def run(self, identifier: str | None) -> RunRecord | None:
        """A run by its id, None when there is none (any more)."""
        if not identifier:
            return None
        try:
            return self.runs.get(identifier)
        except DiffingError:
            return None

    def newest_pair(self) -> str | None:
        """The pair of the newest run; None before the first run."""
        return next((manifest.pair_name for manifest in self.runs.list()), None)

    def evaluation_choices(self) -> list[tuple[str, str]]:
        """(what the picker shows, id) of all evaluations, newest first."""
        plans = list_evaluations(self.data_folder / "evaluations")
        return [
            (f"{plan.id} · {plan.created_at[:16].replace('T', ' ')} · {plan.investigator}", plan.id) for plan in plans
        ]

    def evaluation(self, identifier: str | None) -> Evaluation | None:
        """One evaluation; None when there is none of that name."""
        if not identifier:
            return None
        try:
            folder = EvaluationFolder(identifier, self.data_folder / "evaluations")
            plan = folder.plan()
            return Evaluation(plan, sorted(self._records(folder), key=lambda record: _place(plan, record)))
        except (DiffingError, ValueError, OSError):
            return None

    def _records(self, folder: EvaluationFolder) -> list[EvaluationRecord]:
        outlines = (self._outlines(file) for file in (folder.path / "cells").glob("*.json"))
        return [record for record in outlines if record is not None]

    def whole_records(self, evaluation: str | None) -> Iterator[EvaluationRecord]:
        """The records of an evaluation with all that was said, in the order of the plan. Reads every file."""
        found = self.evaluation(evaluation)
        folder = EvaluationFolder(str(evaluation), self.data_folder / "evaluations") if found else None
        for outline in found.records if found else []:
            record = folder.get(outline.cell_id) if folder else None
            if record is not None:
                yield record

    def record(
        self, evaluation: str | None, organism: str | None, arm: str | None, repeat: int | None
    ) -> EvaluationRecord | None:
        """The whole record of one cell; None when it has not been written yet."""
        found = self.evaluation(evaluation)
        for outline in found.records if found else []:
            if (outline.organism, outline.arm, outline.repeat) == (organism, arm, repeat):
                return EvaluationFolder(str(evaluation), self.data_folder / "evaluations").get(outline.cell_id)
        return None


def _outline(file: Path) -> EvaluationRecord | None:
    """A record whose messages are empty but for their tool calls: grades, budgets and counts of hundreds of cells stay
    small.
    """
    record = EvaluationFolder(file.parents[1].name, file.parents[2]).get(file.stem)
    if record is None:
        return None
    messages = [message.model_copy(update={"content": "", "reasoning": None}) for message in record.transcript]
    return record.model_copy(update={"transcript": messages})


def _place(plan: EvaluationPlan, record: EvaluationRecord) -> tuple[int, int, int]:
    """Records in the order of the plan; organisms that are no longer in it come last."""
    organisms, arms = list(plan.organisms), list(plan.arms)
    organism = organisms.index(record.organism) if record.organism in organisms else len(organisms)
    return organism, arms.index(record.arm) if record.arm in arms else len(arms), record.repeat


def kept(choices: list[tuple[str, str]], selected: str | None) -> str | None:
    """The selection after a refresh: the same when it is still there, else the first."""
    values = [value for _, value in choices]
    return selected if selected in values else (values[0] if values else None)
