"""The record of one finished evaluation cell (organism x arm x investigator x repeat), and the folder that holds them.

    data_folder/evaluations/<evaluation id>/
        evaluation.json            what was asked: EvaluationPlan
        cells/<cell id>.json       one EvaluationRecord a file, written beside and renamed: a torn record is never visible
        logs/                      Inspect logs, when an LLM investigated

The panel, the table and a resumed run read nothing but these files. They hold ground-truth grades, so no tool of the
MCP server reads this folder.
"""  # noqa: E501

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticSerializationError

from diffing_mcp.agents.arms import Arm
from diffing_mcp.agents.names import IDENTIFIER
from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.core.settings import settings
from diffing_mcp.core.text import whole
from diffing_mcp.graders.verdicts import Verdict

SCHEMA_VERSION = 1
LOGS = "logs"
"""Folder of Inspect's logs in an evaluation's folder."""
BY_WORDS = "words"
"""Name of the deterministic reader of claims."""


def now() -> str:
    """The present moment in ISO 8601, UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore")


class ToolCall(_Record):
    """A call an investigator made."""

    id: str
    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class Message(_Record):
    """One message of the transcript. A tool's answer is a message of role `tool` that names its call."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    reasoning: str | None = Field(None, description="Reasoning text that the provider returned beside the content.")
    tool_calls: list[ToolCall] = Field(default_factory=list)
    tool_call_id: str | None = Field(None, description="Role `tool`: the call this answers.")
    tool_name: str | None = None
    is_error: bool = False
    seconds: float | None = Field(
        None, description="Role `tool`: wall-clock seconds until the answer, following job handles included."
    )


class Budget(_Record):
    """One budget of the investigation: how much was allowed (None: unlimited) and how much was used."""

    limit: int | None = None
    used: int = 0


class RecordedFinding(_Record):
    """What the investigator concluded."""

    statement: str = ""
    verdict: Verdict = "inconclusive"
    likelihood: float | None = Field(None, description="How likely the investigator held the finding, 0 to 1.")
    source: Literal["submit_finding", "final_answer", "none"] = Field(
        "none",
        description=(
            "`submit_finding`: handed in through the tool; `final_answer`: taken from the last message; `none`: "
            "nothing was handed in."
        ),
    )


class RecordedTest(_Record):
    """A test of a hypothesis that a finding cites, in the server's words."""

    test_id: str
    counted: str = Field(description="What was counted in the answers.")
    verdict: str
    validates: bool = Field(description="The sides differ, on prompts that had not been answered before.")


class ClaimsReading(_Record):
    """The claims of a finding, one reading. Counterparts: by words (`grader` is `words`), and by a language model."""

    grader: str
    labels: list[Literal["right", "wrong", "none"]] = Field(
        default_factory=list, description="Of each sentence that was read; empty when the grader gave no usable answer."
    )
    right: int = 0
    wrong: int = 0
    precision: float | None = Field(None, description="Right ones of the claims; None where nothing is claimed.")
    abstains: bool = False
    validated: bool | None = Field(
        None,
        description="A cited test on fresh prompts bears the claim out. None: the finding asserts no difference.",
    )
    problem: str | None = Field(None, description="Why there is no reading.")


class HypothesisReading(_Record):
    """One reading of the finding by an LLM grader against the ground truth and the rubric of the organism's family."""

    grader: str = Field(description="Model that graded.")
    repeat: int = 0
    score: float | None = Field(None, description="1 (worst) to 5 (best); None when the grader gave no usable answer.")
    verdict_correct: bool | None = Field(
        None, description="Nulls and verdicts: whether `no meaningful difference` was said exactly where it is true."
    )
    reasoning: str = ""


class FactRecallRecord(_Record):
    """What is kept of the deterministic grade (`diffing_mcp.graders.fact_recall`): which facts of the ground truth the
    statement carries.
    """

    score: int | None = Field(None, description="Level of the family's rubric, 1-5, as far as words decide it.")
    recall: float = Field(description="Share of the facts at least abstracted, in [0, 1]. 0 on nulls.")
    topic_named: bool = False
    verdict_correct: bool = False
    false_positive: bool = Field(False, description="A difference was asserted on a null.")
    precision: float = Field(0.0, description="On-topic share of the statement's content words.")
    facts_total: int = 0
    facts_exact: int = 0
    facts_found: list[str] = Field(default_factory=list)
    facts_missed: list[str] = Field(default_factory=list)
    quotes: dict[str, str] = Field(
        default_factory=dict, description="Fact -> the stretch of the statement that decided."
    )
    reasons: list[str] = Field(default_factory=list, description="What each decision rests on, in words.")


class TokenUsage(_Record):
    """Tokens of an investigator's or a grader's model (not of the models under study)."""

    model: str
    input_tokens: int = Field(0, description="Those that the provider's cache had no part in.")
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = Field(0, description="All of them.")

    def __add__(self, other: TokenUsage) -> TokenUsage:
        """Both together, of the first one's model."""
        counts = type(self).model_fields.keys() - {"model"}
        summed = {name: getattr(self, name) + getattr(other, name) for name in counts}
        return TokenUsage(model=self.model, **summed)


class EvaluationRecord(_Record):
    """Everything about one finished cell."""

    schema_version: int = SCHEMA_VERSION
    evaluation_id: str
    cell_id: str = Field(description="Organism, arm, investigator and repeat in one name; the file's name.")
    organism: str = Field(
        description="Pair reference as it was asked for, such as `cake_bake` or `cake_bake/mix1-1p0`."
    )
    family: str | None = Field(None, description="Family of the organism (chooses the rubric).")
    null: bool = Field(False, description="There is no meaningful difference to find: identical, control, reseed.")
    label: str | None = Field(None, description="Opaque name under which the investigator saw the pair.")
    arm: Arm
    investigator: str = Field(description="`baseline` (deterministic, no LLM) or the name of the model.")
    repeat: int = Field(0, ge=0)
    seed: int = 0
    status: Literal["completed", "failed"] = "completed"
    error: str | None = None
    limit: str | None = Field(
        None,
        description=(
            "The limit that ended the investigation early (message, token, time, context), None when it ended by "
            "itself."
        ),
    )
    started_at: str = Field(default_factory=now)
    seconds: float = 0.0
    investigation_id: str | None = None
    transcript: list[Message] = Field(default_factory=list)
    budgets: dict[str, Budget] = Field(default_factory=dict, description="Keys `model_interactions` and `tool_calls`.")
    finding: RecordedFinding = RecordedFinding()
    fact_recall: FactRecallRecord | None = None
    hypothesis_grades: list[HypothesisReading] = Field(default_factory=list)
    claims: list[ClaimsReading] = Field(default_factory=list)
    tests: list[RecordedTest] = Field(default_factory=list, description="Tests of hypotheses that the finding cites.")
    validation: RecordedTest | None = Field(None, description="A test by a program that did not propose the finding.")
    run_ids: list[str] = Field(default_factory=list, description="Stored runs of methods that the investigator saw.")
    usage: list[TokenUsage] = Field(default_factory=list, description="Of the investigator.")
    grading_usage: list[TokenUsage] = Field(
        default_factory=list, description="Of the LLM grader, of every time that it graded this finding."
    )
    former_usage: list[TokenUsage] = Field(
        default_factory=list, description="Of attempts at this cell that failed: they were paid as well."
    )
    former_seconds: float = Field(0.0, description="Of those attempts.")
    log: str | None = Field(
        None, description="Inspect log file beside the records, relative to the evaluation's folder."
    )

    @property
    def mean_score(self) -> float | None:
        """Mean of the LLM grades, None when there are none."""
        scores = [grade.score for grade in self.hypothesis_grades if grade.score is not None]
        return sum(scores) / len(scores) if scores else None

    @property
    def false_positive(self) -> bool:
        """Of a null: a difference is asserted, by the verdict or, where that is inconclusive, in words."""
        return self.fact_recall.false_positive if self.fact_recall else self.finding.verdict == "difference"

    def claims_read(self, by_words: bool) -> ClaimsReading | None:
        """The reading by words, or that of a language model; None without one."""
        known = [each for each in self.claims if each.problem is None and (each.grader == BY_WORDS) == by_words]
        return known[0] if known else None

    @property
    def tool_calls(self) -> int:
        """How many tool calls the investigator made."""
        return sum(len(message.tool_calls) for message in self.transcript)


class EvaluationPlan(_Record):
    """What an evaluation covers; kept beside its records so that a second call can continue it."""

    schema_version: int = SCHEMA_VERSION
    id: str
    suite: str | None = Field(None, description="Name of the suite that it belongs to.")
    created_at: str = Field(default_factory=now)
    organisms: list[str]
    arms: list[Arm]
    investigator: str
    grader: str | None = None
    repeats: int = 1
    interactions: int = 10
    seed: int = 0
    settings: dict[str, int] = Field(
        default_factory=dict, description="What else decides an investigation and is not its default."
    )
    regraded: str | None = Field(
        None, description="Model that graded all findings anew, in place of `grader`, and grades those to come."
    )

    @property
    def graded_by(self) -> str | None:
        """The model whose grades the records have; None: fact recall alone."""
        return self.regraded or self.grader


def evaluations_folder() -> Path:
    """Where all evaluations live."""
    return settings().data_folder / "evaluations"


class EvaluationFolder:
    """Reads and writes one evaluation's files."""

    def __init__(self, identifier: str, root: Path | None = None) -> None:
        if not IDENTIFIER.fullmatch(identifier):
            raise InvalidInput(
                "An evaluation id has 1-100 letters, digits, dots, dashes and underscores and starts with a letter or "
                f"digit; got {identifier!r}."
            )
        self.id = identifier
        self.path = (root or evaluations_folder()) / identifier

    def write_plan(self, plan: EvaluationPlan) -> None:
        """Create the folder and store the plan."""
        _write_atomically(self.path / "evaluation.json", _json_of(plan, 2))

    def plan(self) -> EvaluationPlan:
        """The stored plan. Raises UnknownName when there is no such evaluation."""
        file = self.path / "evaluation.json"
        if not file.is_file():
            raise UnknownName(
                f"There is no evaluation {self.id!r}. `diffing evaluate` makes one; `diffing evaluations` lists those "
                "there are."
            )
        return EvaluationPlan.model_validate_json(file.read_text(encoding="utf-8"))

    def write(self, record: EvaluationRecord) -> Path:
        """Store one cell; a former record of the same cell is replaced."""
        file = self.path / "cells" / f"{record.cell_id}.json"
        _write_atomically(file, _json_of(record, 1))
        return file

    def amend(self, cell: str, change: Callable[[EvaluationRecord], None]) -> None:
        """Change one stored cell as it is now: others may have changed it since it was read, or removed it."""
        with FileLock(self.path / ".amending.lock"):
            if (record := self.get(cell)) is not None:
                change(record)
                self.write(record)

    def get(self, cell: str, organism: str | None = None) -> EvaluationRecord | None:
        """One stored cell, None when it is not there, its file is not a record, or it is not of this `organism`."""
        file = self.path / "cells" / f"{cell}.json"
        try:
            found = EvaluationRecord.model_validate_json(file.read_text(encoding="utf-8"))
        except (OSError, ValidationError, UnicodeDecodeError):
            return None
        return found if organism in (None, found.organism) else None

    def records(self) -> list[EvaluationRecord]:
        """All stored cells, by name; files that are not records are left out."""
        names = sorted(file.stem for file in (self.path / "cells").glob("*.json"))
        return [record for name in names if (record := self.get(name)) is not None]


def list_evaluations(root: Path | None = None) -> list[EvaluationPlan]:
    """Plans of all stored evaluations, newest first."""
    return sorted(_plans(root or evaluations_folder()), key=lambda plan: (plan.created_at, plan.id), reverse=True)


def _plans(root: Path) -> Iterator[EvaluationPlan]:
    for file in root.glob("*/evaluation.json"):
        try:
            yield EvaluationPlan.model_validate_json(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # ValidationError is one, and what is no UTF-8
            continue


def _json_of(record: _Record, indent: int) -> str:
    try:
        return record.model_dump_json(indent=indent)
    except PydanticSerializationError:  # models write what no file can hold
        return type(record).model_validate(_all_whole(record.model_dump())).model_dump_json(indent=indent)


def _all_whole(value: Any) -> Any:
    """The value with all of its texts without halves of surrogate pairs."""
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, dict):
        return {_all_whole(key): _all_whole(item) for key, item in value.items()}
    return [_all_whole(item) for item in value] if isinstance(value, list) else value


def _write_atomically(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.{secrets.token_hex(4)}.part")
    try:
        with beside.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
