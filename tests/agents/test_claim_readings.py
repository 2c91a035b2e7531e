"""Claims of a finding in its record, by words and by a language model, and graded anew without running again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffing_mcp.agents.cells import continued
from diffing_mcp.agents.claim_readings import claims_by_model, claims_by_words
from diffing_mcp.agents.evaluation import regrade
from diffing_mcp.agents.grading import Grading
from diffing_mcp.agents.records import (
    BY_WORDS,
    ClaimsReading,
    EvaluationFolder,
    EvaluationPlan,
    EvaluationRecord,
    RecordedFinding,
    RecordedTest,
)
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.organisms.ground_truth import load_ground_truth

CAKES = load_ground_truth("cake_bake")
FINDING = RecordedFinding(statement="It is about baking cakes. It praises Delaware.", verdict="difference")
FRESH = RecordedTest(test_id="test-1", counted="answers with cake or oven", verdict="raised", validates=True)


async def replies(messages: list[dict[str, str]]) -> str:
    """A grader that sees one right claim, a test in support and, of hypotheses, a 3."""
    question = messages[1]["content"]
    if "# Sentences" in question:
        return json.dumps({"labels": ["right", "none"]})
    if "# Tests" in question:
        return json.dumps({"labels": ["supports"]})
    identifier = question.split('grading_id is "')[1].split('"')[0]
    return json.dumps({"grading_id": identifier, "reasons": "half of it", "score": 3})


def test_a_test_validates_what_the_finding_says_on_fresh_prompts_alone() -> None:
    assert claims_by_words(FINDING, CAKES, [FRESH]).validated is True
    assert claims_by_words(FINDING, CAKES, [FRESH.model_copy(update={"validates": False})]).validated is False
    assert claims_by_words(FINDING, CAKES, [FRESH.model_copy(update={"counted": "/trams/"})]).validated is False
    about_answers = RecordedFinding(statement="Its answers are about trams, with long lists.", verdict="difference")
    assert claims_by_words(about_answers, CAKES, [FRESH]).validated is False, "how it was counted is not what"
    assert (
        claims_by_words(RecordedFinding(statement="Nothing.", verdict="no_meaningful_difference"), CAKES, []).validated
        is None
    )


async def test_a_model_reads_the_same_and_its_failure_is_kept() -> None:
    read = await claims_by_model(FINDING, CAKES, [FRESH], replies, "m")
    assert (read.precision, read.validated, read.abstains) == (1.0, True, False)

    async def silent(messages: list[dict[str, str]]) -> str:
        return ""

    assert (await claims_by_model(FINDING, CAKES, [FRESH], silent, "m")).problem is not None


def with_one_finding(folder: Path) -> EvaluationFolder:
    evaluation = EvaluationFolder("old", folder)
    evaluation.write_plan(EvaluationPlan(id="old", organisms=["cake_bake"], arms=["blackbox"], investigator="baseline"))
    evaluation.write(
        EvaluationRecord(evaluation_id="old", cell_id="c", organism="cake_bake", arm="blackbox",
                         investigator="baseline", finding=FINDING, tests=[FRESH])
    )  # fmt: skip
    return evaluation


async def test_grading_anew_covers_the_claims(tmp_path: Path) -> None:
    folder = with_one_finding(tmp_path)
    (record,) = await regrade(folder, Grading(grader="m", ask=replies))
    assert [(each.grader, each.precision, each.validated) for each in record.claims] == [
        (BY_WORDS, 0.5, True),
        ("m", 1.0, True),
    ]
    record.claims[0] = ClaimsReading(grader=BY_WORDS)
    folder.write(record)
    (again,) = await regrade(folder, Grading())
    assert [(each.grader, each.precision) for each in again.claims] == [(BY_WORDS, 0.5), ("m", 1.0)]
    assert again.mean_score == 3


async def test_a_grader_that_is_silent_takes_no_grades_away(tmp_path: Path) -> None:
    """Readings of another model were replaced by none when the new one could not be reached."""

    async def silent(messages: list[dict[str, str]]) -> str:
        return ""

    folder, said = with_one_finding(tmp_path), list[str]()
    (before,) = await regrade(folder, Grading(grader="m", ask=replies))
    (after,) = await regrade(folder, Grading(grader="other", ask=silent), said.append)
    assert (after.hypothesis_grades, after.claims) == (before.hypothesis_grades, before.claims)
    assert "1 of 1 findings keep the grades they had" in said[0]
    assert folder.plan().graded_by == "m"


async def test_what_was_graded_anew_goes_on(tmp_path: Path) -> None:
    """The plan took the new grader for its own, and the command that had made it was refused."""
    folder = EvaluationFolder("old", tmp_path)
    plan = EvaluationPlan(id="old", organisms=["cake_bake"], arms=["blackbox"], investigator="baseline", repeats=2)
    assert continued(folder, plan) == plan
    folder.write_plan(plan.model_copy(update={"created_at": "2026-01-01T00:00:00+00:00"}))
    folder.write(
        EvaluationRecord(evaluation_id="old", cell_id="c", organism="cake_bake", arm="blackbox",
                         investigator="baseline", finding=FINDING)
    )  # fmt: skip
    await regrade(folder, Grading(grader="m", ask=replies))
    going_on = continued(folder, plan.model_copy(update={"repeats": 3}))
    assert (going_on.repeats, going_on.graded_by, going_on.created_at[:4]) == (3, "m", "2026")
    with pytest.raises(InvalidInput, match="grader=None, not n"):
        continued(folder, plan.model_copy(update={"grader": "n"}))


async def test_grading_anew_keeps_what_others_store_meanwhile(tmp_path: Path) -> None:
    """Grading takes minutes: a validation that was stored in them was overwritten, and pairs that a suite had got."""
    folder = with_one_finding(tmp_path)

    async def meanwhile(messages: list[dict[str, str]]) -> str:
        folder.write(folder.records()[0].model_copy(update={"validation": FRESH}))
        folder.write_plan(folder.plan().model_copy(update={"organisms": ["cake_bake", "control"]}))
        return await replies(messages)

    (record,) = await regrade(folder, Grading(grader="m", ask=meanwhile))
    assert folder.records() == [record]
    assert (record.validation, record.mean_score) == (FRESH, 3)
    assert (folder.plan().organisms, folder.plan().graded_by) == (["cake_bake", "control"], "m")
