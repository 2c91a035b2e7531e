"""An evaluation under way: its plan, its cells (arms x organisms x repeats), and how a finished cell becomes a graded
record.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffing_mcp.agents.arms import Arm, decoy_of, tools_of
from diffing_mcp.agents.baseline import BaselineOptions
from diffing_mcp.agents.grading import Grading
from diffing_mcp.agents.investigations import OpenInvestigation, close_investigation, open_investigation
from diffing_mcp.agents.mcp_session import called
from diffing_mcp.agents.names import alike_in_files, as_identifier, cell_id
from diffing_mcp.agents.records import (
    EvaluationFolder,
    EvaluationPlan,
    EvaluationRecord,
    Message,
    RecordedFinding,
    TokenUsage,
    now,
)
from diffing_mcp.core.errors import DiffingError, InvalidInput, UnknownName
from diffing_mcp.graders.verdicts import Verdict

BASELINE = "baseline"
_UNDER_WAY = "not finished: under way, or interrupted; a second call begins it anew"
TOOL_CALLS = 200
"""Budget of tool calls of an investigation; interactions are what is compared."""

_VERDICT = re.compile(
    r"\bverdict\b\W{0,20}(?:(?:is|was)\b\W{0,20})?(?:a |that )?\W{0,20}"
    r"(no[_ ]meaningful[_ ]difference|difference|inconclusive)\b",
    re.IGNORECASE,
)
_VERDICTS: dict[str, Verdict] = {
    "no meaningful difference": "no_meaningful_difference",
    "difference": "difference",
    "inconclusive": "inconclusive",
}
_NO_DIFFERENCE = re.compile(r"(?<!\bnot )(?<!n't )\bno[_ ]meaningful[_ ]difference\b", re.IGNORECASE)

Report = Callable[[int, int, EvaluationRecord], None]
"""Called after each cell with (finished, total, record); cells that were there before included."""


@dataclass(frozen=True)
class Cell:
    """One thing to run."""

    organism: str
    arm: Arm
    repeat: int
    seed: int
    id: str


@dataclass
class RunningEvaluation:
    """What the investigations of one evaluation share.

    grading: turns a finding into grades.
    url: MCP endpoint of the running server, where this process is an operator.
    baseline: how the baseline investigators work; their seed is replaced by the cell's.
    investigator_url: base URL of the API behind an LLM investigator, when it is not the provider's own.
    may_go_on: called before each investigation; raises CapReached when no further one may be opened.
    limits: message_limit, token_limit, time_limit (seconds) and max_samples of LLM investigations.
    stopped: what `may_go_on` has raised in a task of Inspect, which takes it for an error of that sample.
    begun: records of cells under way, as they were before anything had happened.
    """

    plan: EvaluationPlan
    folder: EvaluationFolder
    grading: Grading
    url: str
    baseline: BaselineOptions = field(default_factory=BaselineOptions)
    report: Report = lambda finished, total, record: None
    may_go_on: Callable[[], None] = lambda: None
    investigator_url: str | None = None
    limits: dict[str, int] = field(default_factory=dict)
    stopped: DiffingError | None = None
    begun: dict[str, EvaluationRecord] = field(default_factory=dict)

    def is_complete(self) -> bool:
        """Whether every cell has its completed record already."""
        return all(
            (record := self.folder.get(cell.id, cell.organism)) is not None and record.status == "completed"
            for cell in cells_of(self.plan)
        )

    def note_usage(self, cell: Cell, opened: OpenInvestigation, usage: list[TokenUsage], seconds: float) -> None:
        """Store what an investigation under way has used so far: whoever begins it again after this process was
        interrupted counts it among what was paid.
        """
        blank = self.begun[cell.id] = self.blank_record(cell)
        changes = {"usage": usage, "seconds": round(seconds, 2), "investigation_id": opened.id, "label": opened.label}
        self.folder.write(blank.model_copy(update={"status": "failed", "error": _UNDER_WAY, **changes}))

    def blank_record(self, cell: Cell) -> EvaluationRecord:
        """The record of a cell before anything has happened."""
        if cell.id in self.begun:  # its own notes of usage are no former attempt
            return self.begun[cell.id].model_copy(deep=True)
        family, null = self.grading.kind_of(cell.organism)
        former = self.folder.get(cell.id, cell.organism)
        failed = [former] if former is not None and former.status == "failed" else []
        return EvaluationRecord(
            evaluation_id=self.plan.id,
            cell_id=cell.id,
            organism=cell.organism,
            family=family,
            null=null,
            arm=cell.arm,
            investigator=self.plan.investigator,
            repeat=cell.repeat,
            seed=cell.seed,
            started_at=now(),
            former_usage=[usage for each in failed for usage in (*each.former_usage, *each.usage, *each.grading_usage)],
            former_seconds=sum(each.former_seconds + each.seconds for each in failed),
        )

    async def open(self, cell: Cell) -> OpenInvestigation:
        """A fresh investigation for this cell.

        Raises:
            CapReached: the suite has spent what it may.
            InvalidInput: a placebo without another pair.
            ToolFailed, NoServer: the server refuses, or is not there.
        """
        self.may_go_on()
        note = f"{self.plan.id} {cell.id}"
        return await open_investigation(
            self.url,
            cell.organism,
            tools_of(cell.arm),
            self.plan.interactions,
            TOOL_CALLS,
            note,
            methods_pair=decoy_of(cell.arm, cell.organism, self.plan.organisms, cell.repeat),
        )

    async def complete(self, record: EvaluationRecord, said: str = "") -> None:
        """Close the record's investigation, fill in what it left (a finding that was not handed in is taken from
        `said`, the last words) and grade it. When the server no longer answers, the record has failed.
        """
        if record.investigation_id is None:
            record.status, record.error = "failed", record.error or "the investigation could not be opened"
            return
        try:
            closed = await close_investigation(self.url, record.investigation_id)
        except DiffingError as error:
            record.status, record.error = "failed", record.error or error.message
            return
        record.budgets, record.run_ids = closed.budgets, closed.run_ids
        handed_in = closed.finding and as_stated(closed.finding, record.transcript)
        record.finding, record.tests = handed_in or finding_in(said), closed.tests
        if record.status == "completed":
            grades = await self.grading.grade(record.organism, record.finding, record.tests)
            record.fact_recall, record.hypothesis_grades = grades.fact_recall, grades.readings
            record.claims, record.grading_usage = grades.claims, grades.usage


def as_stated(finding: RecordedFinding, transcript: Sequence[Message]) -> RecordedFinding:
    """The finding without a likelihood where the call that handed it in gave none: the server's default is nobody's
    opinion.
    """
    made = [called(call.name, call.arguments) for message in transcript for call in message.tool_calls]
    calls = [arguments for tool, arguments in made if tool == "submit_finding"]
    if calls and all(arguments.get("likelihood") is None for arguments in calls):
        return finding.model_copy(update={"likelihood": None})
    return finding


def finding_in(text: str) -> RecordedFinding:
    """The finding in an investigator's last words, for one that never called submit_finding. Without words there is
    none.

    The verdict is read where it is named as such, the last time if several times; else only `no meaningful difference`
    is. Without either the finding is inconclusive.
    """
    if not text.strip():
        return RecordedFinding()
    verdict: Verdict = "inconclusive"
    if said := _VERDICT.findall(text):
        verdict = _VERDICTS[re.sub(r"\W+|_", " ", said[-1].lower())]
    elif _NO_DIFFERENCE.search(text):
        verdict = "no_meaningful_difference"
    return RecordedFinding(statement=text, verdict=verdict, source="final_answer")


def cells_of(plan: EvaluationPlan) -> list[Cell]:
    """Organism by organism, so that a pair stays in memory for all its cells. A repeat has the same seed for all
    organisms and arms.
    """
    alike = alike_in_files(plan.organisms)
    return [
        Cell(
            organism,
            arm,
            repeat,
            plan.seed + repeat,
            cell_id(organism, arm, plan.investigator, repeat, organism in alike),
        )
        for organism in plan.organisms
        for arm in plan.arms
        for repeat in range(plan.repeats)
    ]


def plan_identifier(values: dict[str, Any]) -> str:
    """An id that equal requests share, so that repeating a command continues its evaluation. `repeats` may grow and is
    left out.
    """
    decisive = {name: value for name, value in values.items() if name != "repeats"}
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()[:8]
    word = str(values.get("investigator", "evaluation")).rsplit("/", maxsplit=1)[-1]
    plain = "".join(
        character if character.isalnum() or character in "._-" else "-" for character in f"{word}-{digest}"
    ).strip(".-_")
    return as_identifier(plain)


def continued(folder: EvaluationFolder, plan: EvaluationPlan) -> EvaluationPlan:
    """The plan with what an earlier call has stored of it: since when there is one, and who has graded it anew.

    Raises:
        InvalidInput: see `check_continues`.
    """
    try:
        stored = folder.plan()
    except UnknownName:
        return plan
    check_continues(stored, plan)
    return plan.model_copy(update={"created_at": stored.created_at, "regraded": stored.regraded})


def check_continues(stored: EvaluationPlan, wanted: EvaluationPlan) -> None:
    """Refuse to mix two different evaluations under one id; organisms, arms and repeats may change.

    Raises:
        InvalidInput: investigator, grader, interactions, seed or settings differ from the stored plan's.
    """
    fixed = ("investigator", "grader", "interactions", "seed")
    decisive = [(name, getattr(stored, name), getattr(wanted, name)) for name in fixed]
    settings = sorted({*stored.settings, *wanted.settings})
    decisive += [
        (name, stored.settings.get(name, "its default"), wanted.settings.get(name, "its default")) for name in settings
    ]
    for name, before, after in decisive:
        if before != after:
            raise InvalidInput(
                f"Evaluation {stored.id} was made with {name}={before}, not {after}. Choose another --id, or leave it "
                "out."
            )
