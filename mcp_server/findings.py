"""Hypotheses with their evidence, and the one final finding of an investigation. Operators have hypotheses and findings
of their own.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.mcp_server.database import connect, transaction

FindingVerdict = Literal["difference", "no_meaningful_difference", "inconclusive"]
Status = Literal["active", "confirmed", "rejected"]
OPERATOR_SCOPE = "operator"


class Evidence(BaseModel):
    """What a hypothesis rests on: `source` is the id of a run, a test or a job, or `prompt` for something seen in an
    answer; `note` what was seen there, in a sentence.
    """

    source: str = Field(max_length=120)
    note: str = Field("", max_length=600)


class Hypothesis(BaseModel):
    """One entry of the notebook."""

    number: int
    statement: str
    likelihood: float
    status: Status
    reasoning: str
    evidence: list[Evidence]


class Finding(BaseModel):
    """The final statement of an investigation."""

    verdict: FindingVerdict
    statement: str
    likelihood: float
    evidence: list[Evidence]
    created: float


def record_hypothesis(
    scope: str,
    statement: str | None,
    likelihood: float | None,
    status: str | None = None,
    reasoning: str = "",
    evidence: Sequence[Evidence] = (),
    number: int | None = None,
) -> Hypothesis:
    """Add a hypothesis, or change the one called `number` (fields that are None stay, evidence is added to what there
    is).

    Raises:
        InvalidInput: a new one without statement or likelihood.
        UnknownName: there is no hypothesis of that number.
    """
    now = time.time()
    with transaction() as connection:
        if number is None:
            if not statement or likelihood is None:
                raise InvalidInput(
                    "a new hypothesis needs `statement` and `likelihood` (0 to 1); give `number` to change one that "
                    "exists"
                )
            number = connection.execute(
                "SELECT coalesce(max(number), 0) + 1 FROM hypotheses WHERE scope = ?", (scope,)
            ).fetchone()[0]
            connection.execute(
                "INSERT INTO hypotheses VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    number,
                    scope,
                    statement,
                    likelihood,
                    status or "active",
                    _evidence_json(evidence),
                    reasoning,
                    now,
                    now,
                ),
            )
        else:
            row = connection.execute(
                "SELECT * FROM hypotheses WHERE scope = ? AND number = ?", (scope, number)
            ).fetchone()
            if row is None:
                raise UnknownName(
                    f"there is no hypothesis {number}; list_hypotheses shows all, and leaving `number` out adds one"
                )
            connection.execute(
                (
                    "UPDATE hypotheses SET statement = ?, likelihood = ?, status = ?, evidence = ?, reasoning = ?, "
                    "updated = ? WHERE scope = ? AND number = ?"
                ),
                (
                    statement or row["statement"],
                    row["likelihood"] if likelihood is None else likelihood,
                    status or row["status"],
                    json.dumps(json.loads(row["evidence"]) + json.loads(_evidence_json(evidence))),
                    reasoning or row["reasoning"],
                    now,
                    scope,
                    number,
                ),
            )
        row = connection.execute("SELECT * FROM hypotheses WHERE scope = ? AND number = ?", (scope, number)).fetchone()
    return _hypothesis(row)


def list_hypotheses(scope: str) -> list[Hypothesis]:
    """All hypotheses, in the order of recording."""
    with connect() as connection:
        return [
            _hypothesis(row)
            for row in connection.execute("SELECT * FROM hypotheses WHERE scope = ? ORDER BY number", (scope,))
        ]


def submit_finding(
    scope: str, verdict: FindingVerdict, statement: str, likelihood: float, evidence: Sequence[Evidence] = ()
) -> Finding:
    """Store the final statement.

    Raises:
        InvalidInput: the investigation has one already.
    """
    now = time.time()
    try:
        with transaction() as connection:
            connection.execute(
                "INSERT INTO findings VALUES (?, ?, ?, ?, ?, ?)",
                (scope, verdict, statement, likelihood, _evidence_json(evidence), now),
            )
    except sqlite3.IntegrityError:
        raise InvalidInput(
            "this investigation has its finding already; it can be given once, and nothing more is needed"
        ) from None
    return Finding(verdict=verdict, statement=statement, likelihood=likelihood, evidence=list(evidence), created=now)


def list_findings(scope: str) -> list[Finding]:
    """Findings of an investigation (at most one) or of operators."""
    with connect() as connection:
        return [
            Finding(
                verdict=row["verdict"],
                statement=row["statement"],
                likelihood=row["likelihood"],
                evidence=json.loads(row["evidence"]),
                created=row["created"],
            )
            for row in connection.execute("SELECT * FROM findings WHERE scope = ? ORDER BY created", (scope,))
        ]


def _evidence_json(evidence: Sequence[Evidence]) -> str:
    return json.dumps([item.model_dump() for item in evidence])


def _hypothesis(row: sqlite3.Row) -> Hypothesis:
    return Hypothesis.model_validate({**dict(row), "evidence": json.loads(row["evidence"])})
