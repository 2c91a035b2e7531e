"""Tests of hypotheses that were made, and which prompts a caller has had answered.

Both are kept in the database of investigations and not in the run store: a test belongs to one caller, whose earlier
questions decide whether its prompts were fresh, while runs are shared by all who ask for equal work.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, Field

from diffing_mcp.core.errors import UnknownName
from diffing_mcp.core.text import clip
from diffing_mcp.mcp_server.database import connect, transaction
from diffing_mcp.mcp_server.findings import Evidence
from diffing_mcp.queries.hypothesis_schemas import HypothesisResult
from diffing_mcp.queries.prompt_statistics import LEVEL

PREFIX = "test-"
_NOTE = 600


class HypothesisTest(HypothesisResult):
    """A test as it is kept."""

    test_id: str = Field(description="Cite it as evidence.")
    answered_before: int = Field(
        description="Of its prompts, how many this caller had had answered before: 0 makes it a validation."
    )
    made_before: int = Field(0, description="Other tests of this pair that the caller had made by then.")

    @property
    def validation(self) -> str:
        """In a line, what the choice of prompts allows to say."""
        if self.answered_before:
            return (
                f"{self.answered_before} of its prompts had been answered here before: this describes what was seen. "
                "To validate it, test fresh prompts."
            )
        if self.differs:
            said = "Validated on fresh prompts: prompts and count were fixed before any of these was answered here."
            corrected = self.tested.difference.p * (self.made_before + 1)
            if corrected >= LEVEL:  # of twenty tests of nothing, one differs
                said += f" As one of {self.made_before + 1} tests of this pair it has a p of {min(1.0, corrected):.2g}."
            return said
        return "Fresh prompts: they and the count were fixed before any of these was answered here."


class CitedTest(BaseModel):
    """A test that a finding rests on."""

    test_id: str
    counted: str
    verdict: str
    validates: bool = Field(description="The sides differ, on prompts none of which had been answered here before.")


def keep(scope: str, identity: Any, test: HypothesisTest, prompts: Sequence[str]) -> None:
    """Store a test, and that its prompts have been answered. One that is there already stays."""
    with transaction() as connection:
        connection.execute(
            "INSERT OR IGNORE INTO hypothesis_tests (id, scope, test, created, pair) VALUES (?, ?, ?, ?, ?)",
            (test.test_id, scope, test.model_dump_json(), time.time(), _pair(identity)),
        )
        connection.executemany(
            "INSERT OR IGNORE INTO answered_prompts VALUES (?, ?, ?)", _rows(scope, identity, prompts)
        )


def find(scope: str, test_id: str) -> HypothesisTest | None:
    """The caller's test of that id."""
    with connect() as connection:
        row = connection.execute(
            "SELECT test FROM hypothesis_tests WHERE scope = ? AND id = ?", (scope, test_id)
        ).fetchone()
    return None if row is None else HypothesisTest.model_validate_json(row["test"])


def get(scope: str, test_id: str) -> HypothesisTest:
    """As `find`.

    Raises:
        UnknownName: there is none; the message names those there are.
    """
    if (test := find(scope, test_id)) is not None:
        return test
    with connect() as connection:
        rows = connection.execute(
            "SELECT id FROM hypothesis_tests WHERE scope = ? ORDER BY created DESC LIMIT 20", (scope,)
        )
        known = ", ".join(row["id"] for row in rows)
    raise UnknownName(f"there is no test {test_id!r}; tests: {known or 'none yet, test_hypothesis makes one'}")


def count_made(scope: str, identity: Any) -> int:
    """How many tests of a pair a caller has made."""
    with connect() as connection:
        found = connection.execute(
            "SELECT count(*) FROM hypothesis_tests WHERE scope = ? AND pair = ?", (scope, _pair(identity))
        ).fetchone()
    return int(found[0])


def remember_answered(scope: str, identity: Any, prompts: Iterable[str]) -> None:
    """These prompts have been answered by a pair for a caller."""
    with transaction() as connection:
        connection.executemany(
            "INSERT OR IGNORE INTO answered_prompts VALUES (?, ?, ?)", _rows(scope, identity, prompts)
        )


def count_answered(scope: str, identity: Any, prompts: Iterable[str], in_runs: Iterable[str] = ()) -> int:
    """How many of the prompts a pair has answered for a caller before, whatever their case and spaces; `in_runs`: those
    of the runs that the caller may read.
    """
    read = set(_rows(scope, identity, in_runs))
    with connect() as connection:
        return sum(
            row in read
            or connection.execute(
                "SELECT 1 FROM answered_prompts WHERE scope = ? AND pair = ? AND prompt = ?", row
            ).fetchone()
            is not None
            for row in _rows(scope, identity, prompts)
        )


def with_verdicts(scope: str, evidence: Sequence[Evidence]) -> list[Evidence]:
    """Evidence in which every test that is cited says what it showed, in the server's words.

    Raises:
        UnknownName: a test is cited that the caller has not made.
    """
    result = []
    for each in evidence:
        if each.source.startswith(PREFIX):
            test = get(scope, each.source)
            said = f"{clip(test.counted, 120)[0]}: {test.verdict}. {test.validation}"
            each = each.model_copy(update={"note": clip(f"{said} {each.note}".strip(), _NOTE)[0]})
        result.append(each)
    return result


def cited_tests(scope: str, evidence: Sequence[Evidence]) -> list[CitedTest]:
    """The caller's tests among pieces of evidence, each once."""
    tests = [find(scope, source) for source in dict.fromkeys(each.source for each in evidence)]
    return [
        CitedTest(
            test_id=test.test_id,
            counted=test.counted,
            verdict=test.verdict,
            validates=test.differs and not test.answered_before,
        )
        for test in tests
        if test is not None
    ]


def _rows(scope: str, identity: Any, prompts: Iterable[str]) -> list[tuple[str, str, str]]:
    pair = _pair(identity)
    return [(scope, pair, _digest(" ".join(prompt.casefold().split()))) for prompt in prompts]


def _pair(identity: Any) -> str:
    return _digest(json.dumps(identity, sort_keys=True, default=str))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
