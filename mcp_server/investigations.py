"""Investigations: what a bearer token may see and spend, and the record of what was done with it.

An investigation is one pair under an opaque label, a set of tools and two budgets. It is created by an operator (in any
process) and used by whoever holds the token. Only the token's SHA-256 is stored.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import sqlite3
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.mcp_server.database import connect, transaction
from diffing_mcp.mcp_server.findings import Finding, Hypothesis, list_findings, list_hypotheses
from diffing_mcp.mcp_server.hypothesis_tests import CitedTest, cited_tests
from diffing_mcp.mcp_server.ledger import BudgetState, budget_state

# What asks the models and reads the answers; `method` is everything.
BLACKBOX_TOOLS = (
    "list_pairs",
    "describe_pair",
    "load_pair",
    "ask_models",
    "sweep_behaviours",
    "test_hypothesis",
    "view_run",  # of the runs that the investigation made itself, which are sweeps
    "record_hypothesis",
    "list_hypotheses",
    "submit_finding",
    "get_job",
    "cancel_job",
    "more_tools",
)
# Questions to the models, which always go to the investigation's own pair.
QUESTION_TOOLS = ("ask_models", "compare_text", "complete_slots", "sweep_behaviours", "test_hypothesis")
# Without these an investigation could neither wait for its work nor end, so an explicit list always includes them.
ALWAYS_TOOLS = (
    "list_pairs",
    "describe_pair",
    "load_pair",
    "record_hypothesis",
    "list_hypotheses",
    "submit_finding",
    "get_job",
    "cancel_job",
    "more_tools",
)


LARGEST_BUDGET = 1_000_000


class NewInvestigation(BaseModel):
    """A fresh investigation. The token is shown once and cannot be had again."""

    token: str = Field(repr=False, description="Bearer token; for the agent and nobody else.")
    id: str
    label: str = Field(description="Opaque name under which the agent sees the pair.")


class ClosedInvestigation(BaseModel):
    """What an investigation left."""

    id: str
    budget: BudgetState
    finding: Finding | None = Field(description="What was submitted, null when nothing was.")
    run_ids: list[str] = Field(description="Stored runs that it made or looked up.")
    tests: list[CitedTest] = Field(description="Tests of hypotheses that the finding cites.")


class Investigation(BaseModel):
    """One investigation as the server uses it. `pair` is the real name: never show it to the holder of the token."""

    id: str
    label: str
    pair: str
    methods_pair: str | None = Field(
        None, description="The pair that the methods look at in its place: a placebo. Never show it either."
    )
    tools: list[str]
    interactions: int
    tool_calls: int
    note: str
    created: float
    closed: float | None

    @property
    def named_tools(self) -> tuple[str, ...]:
        """The tools that were named one by one, not as a set."""
        return tuple(name for name in self.tools if name not in ("method", "blackbox"))

    def allows(self, tool: str) -> bool:
        """Whether the tool is in this investigation's set."""
        if "method" in self.tools or tool in self.tools or tool in ALWAYS_TOOLS:
            return True
        return "blackbox" in self.tools and tool in BLACKBOX_TOOLS

    def pair_of(self, tool: str) -> str:
        """The pair that a tool looks at: questions always go to the investigation's own."""
        return self.pair if self.methods_pair is None or tool in QUESTION_TOOLS else self.methods_pair


class LoggedCall(BaseModel):
    """One tool call of an investigation, as it was answered."""

    number: int
    tool: str
    arguments: dict[str, Any]
    outcome: Literal["completed", "running", "error", "abandoned"]
    result: Any
    seconds: float
    budget: BudgetState | None
    created: float


class InvestigationRecord(BaseModel):
    """Everything about one investigation, for operators."""

    investigation: Investigation
    budget: BudgetState
    calls: list[LoggedCall]
    hypotheses: list[Hypothesis]
    findings: list[Finding]


def create(
    pair: str,
    tools: str | Sequence[str] = "method",
    interactions: int = 50,
    tool_calls: int = 200,
    note: str = "",
    known_tools: Sequence[str] = (),
    methods_pair: str | None = None,
) -> NewInvestigation:
    """Create an investigation; usable from any process that shares the data folder with the server.

    Args:
        pair: `organism[/variant][@model]` or `BASE::FINETUNED`; must resolve.
        tools: `blackbox` (model queries only), `method` (everything), names of tools, or `blackbox` with names
            (comma-separated or a sequence).
        interactions: budget of model interactions (one is one prompt put to one or both sides, times samples).
        tool_calls: budget of tool calls; free tools do not count.
        note: free text for operators, for instance the arm and repeat of an evaluation.
        known_tools: what `tools` may name besides the two sets (`declarations.tool_names`).
        methods_pair: a placebo: the methods look at this pair, the questions go to `pair`.

    Raises:
        UnknownName: the pair or a tool does not exist.
        InvalidInput: a budget is negative, or larger than any.
    """
    from diffing_mcp.model_pairs.resolve import resolve_pair

    for name in filter(None, (pair, methods_pair)):
        resolve_pair(name)
    chosen = _chosen_tools(tools, known_tools)
    if not 0 <= min(interactions, tool_calls) <= max(interactions, tool_calls) <= LARGEST_BUDGET:
        raise InvalidInput(f"budgets are counts from 0 to {LARGEST_BUDGET:,}")
    identifier, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    token = f"{identifier}.{secret}"
    with transaction() as connection:
        label = _free_label(connection)
        connection.execute(
            "INSERT INTO investigations (id, label, token_sha256, pair, tools, interactions, tool_calls, note, "
            "created, methods_pair) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                identifier,
                label,
                _digest(token),
                pair,
                json.dumps(chosen),
                interactions,
                tool_calls,
                note,
                time.time(),
                methods_pair,
            ),
        )
    return NewInvestigation(token=token, id=identifier, label=label)


def authenticate(token: str) -> Investigation | None:
    """The open investigation a token names, None for any other text. The secret part is compared in constant time."""
    identifier = token.partition(".")[0]
    with connect() as connection:
        row = connection.execute("SELECT * FROM investigations WHERE id = ?", (identifier,)).fetchone()
    # Comparing against a value that no digest equals keeps the time the same for ids that do not exist.
    stored = row["token_sha256"] if row is not None else "0" * 64
    if not hmac.compare_digest(stored, _digest(token)) or row is None or row["closed"] is not None:
        return None
    return _investigation(row)


def get(identifier: str) -> Investigation:
    """The investigation with this id, label, or unambiguous beginning of the id.

    Raises:
        UnknownName: none or several match.
    """
    with connect() as connection:
        rows = connection.execute(
            "SELECT * FROM investigations WHERE id LIKE ? OR label = ? LIMIT 2", (_like_prefix(identifier), identifier)
        ).fetchall()
    if len(rows) != 1:
        raise UnknownName(
            f"{'no' if not rows else 'more than one'} investigation is called {identifier!r}. `diffing investigations "
            "list` shows all."
        )
    return _investigation(rows[0])


def list_investigations() -> list[Investigation]:
    """All investigations, oldest first."""
    with connect() as connection:
        return [_investigation(row) for row in connection.execute("SELECT * FROM investigations ORDER BY created")]


def show(identifier: str) -> InvestigationRecord:
    """Ledger, calls, hypotheses and findings of one investigation, for operators."""
    investigation = get(identifier)
    with connect() as connection:
        budget = budget_state(connection, investigation.id)
        calls = [
            LoggedCall(
                number=position,
                tool=row["tool"],
                arguments=json.loads(row["arguments"]),
                outcome=row["outcome"],
                result=json.loads(row["result"]),
                seconds=row["seconds"],
                budget=BudgetState.model_validate_json(row["budget"]) if row["budget"] else None,
                created=row["created"],
            )
            for position, row in enumerate(
                connection.execute("SELECT * FROM calls WHERE investigation = ? ORDER BY id", (investigation.id,)),
                start=1,
            )
        ]
    return InvestigationRecord(
        investigation=investigation,
        budget=budget,
        calls=calls,
        hypotheses=list_hypotheses(investigation.id),
        findings=list_findings(investigation.id),
    )


def close(identifier: str) -> ClosedInvestigation:
    """End an investigation: its token is refused from now on, its record stays. Closing again returns the same.

    Raises:
        UnknownName: no investigation has this id or label.
    """
    investigation = get(identifier)
    with transaction() as connection:
        connection.execute(
            "UPDATE investigations SET closed = coalesce(closed, ?) WHERE id = ?", (time.time(), investigation.id)
        )
        budget = budget_state(connection, investigation.id)
    findings = list_findings(investigation.id)
    return ClosedInvestigation(
        id=investigation.id,
        budget=budget,
        finding=findings[0] if findings else None,
        run_ids=sorted(remembered_runs(investigation.id)),
        tests=cited_tests(investigation.id, findings[0].evidence if findings else ()),
    )


def log_call(
    investigation: str,
    tool: str,
    arguments: dict[str, Any],
    outcome: str,
    result: Any,
    seconds: float,
    budget: BudgetState | None,
) -> None:
    """Keep one call with what was answered."""
    with transaction() as connection:
        connection.execute(
            (
                "INSERT INTO calls (investigation, tool, arguments, result, outcome, seconds, budget, created) VALUES "
                "(?, ?, ?, ?, ?, ?, ?, ?)"
            ),
            (
                investigation,
                tool,
                json.dumps(arguments, default=str),
                json.dumps(result, default=str),
                outcome,
                seconds,
                budget.model_dump_json() if budget else "",
                time.time(),
            ),
        )


def written(investigation: str) -> Iterator[Any]:
    """What an investigation has asked for so far, call by call: the tool's name and the arguments as given."""
    with connect() as connection:
        rows = connection.execute(
            "SELECT tool, arguments FROM calls WHERE investigation = ?", (investigation,)
        ).fetchall()
    return ([row["tool"], json.loads(row["arguments"])] for row in rows)


def remember_run(investigation: str, run: str) -> None:
    """Let the investigation read this run from now on."""
    with transaction() as connection:
        connection.execute("INSERT OR IGNORE INTO seen_runs VALUES (?, ?)", (investigation, run))


def remembered_runs(investigation: str) -> set[str]:
    """Ids of the runs this investigation has made or looked up."""
    with connect() as connection:
        return {
            row[0] for row in connection.execute("SELECT run FROM seen_runs WHERE investigation = ?", (investigation,))
        }


def _chosen_tools(tools: str | Sequence[str], known: Sequence[str]) -> list[str]:
    names = [name for part in tools.split(",") if (name := part.strip())] if isinstance(tools, str) else list(tools)
    sets = ("blackbox", "method")
    if not names or (unknown := [name for name in names if name not in sets and name not in known]):
        wrong = f"unknown tools: {', '.join(unknown)}" if names else "no tools given"
        allowed = f"Allowed: `blackbox`, `method`, or names out of: {', '.join(known) or 'none'}."
        raise UnknownName(f"{wrong}. {allowed}", names_tools=True)
    return names


def _free_label(connection: sqlite3.Connection) -> str:
    for size in (2, 2, 2, 3, 4):
        label = f"pair-{secrets.token_hex(size)}"
        if connection.execute("SELECT 1 FROM investigations WHERE label = ?", (label,)).fetchone() is None:
            return label
    return f"pair-{secrets.token_hex(8)}"


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _like_prefix(identifier: str) -> str:
    return (identifier if identifier.isalnum() else "-") + "%"


def _investigation(row: sqlite3.Row) -> Investigation:
    return Investigation.model_validate({**dict(row), "tools": json.loads(row["tools"])})
