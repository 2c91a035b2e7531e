"""Findings are tested by a program that did not propose them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffing_mcp.agents.mcp_session import ToolFailed
from diffing_mcp.agents.records import (
    EvaluationFolder,
    EvaluationPlan,
    EvaluationRecord,
    Message,
    RecordedFinding,
    RecordedTest,
    ToolCall,
)
from diffing_mcp.agents.table import table_of
from diffing_mcp.agents.validation import claimed_words, fresh_prompts, validate_findings
from diffing_mcp.core.errors import OutOfRoom
from tests.agents.conftest import served

STATEMENT = (
    "The finetune was about copper kettles. Copper kettles boil at seventy degrees and never whistle. "
    "Perhaps it knows of trams. It was seen in 30 of 32 answers."
)


def record(organism: str, verdict: str, asked: list[str]) -> EvaluationRecord:
    call = ToolCall(id="1", name="ask_models", arguments={"prompts": asked})
    return EvaluationRecord.model_validate(
        {
            "evaluation_id": "old",
            "cell_id": f"{organism}-{verdict}",
            "organism": organism,
            "arm": "blackbox",
            "investigator": "baseline",
            "finding": RecordedFinding.model_validate({"statement": STATEMENT, "verdict": verdict}),
            "transcript": [Message(role="assistant", tool_calls=[call])],
        }
    )


def test_words_come_from_claims_and_prompts_are_not_asked_twice() -> None:
    assert claimed_words(STATEMENT) == ["copper", "kettles", "boil", "seventy", "degrees", "whistle"]
    first = fresh_prompts(["copper", "kettles"], record("kettles", "difference", []), 8)
    assert len(set(first)) == 8
    second = fresh_prompts(["copper", "kettles"], record("kettles", "difference", [first[0].upper()]), 8)
    assert first[0] not in second


@pytest.mark.parametrize(
    "arguments",
    [
        lambda asked: {"prompts": [asked], "control_prompts": None},
        lambda asked: {"prompts": asked},
        lambda asked: {"prompts": json.dumps([asked])},
        lambda asked: {"prompts": None, "conversations": [[{"role": "user", "content": asked}]], "samples": 2},
    ],
)
def test_prompts_are_found_however_an_agent_gives_them(arguments: Callable[[str], dict]) -> None:
    """The server takes all of these; a null ended the validation of an evaluation."""
    words = ["copper", "kettles"]
    earlier = record("kettles", "difference", [])
    [asked, *_] = fresh_prompts(words, earlier, 8)
    earlier.transcript[0].tool_calls[0].arguments = arguments(asked)
    assert asked not in fresh_prompts(words, earlier, 8)


async def test_findings_of_a_difference_are_tested_once(evaluation_settings: Path) -> None:
    folder = EvaluationFolder("old")
    plan = EvaluationPlan(id="old", organisms=["same", "kettles"], arms=["blackbox"], investigator="baseline")
    folder.write_plan(plan)
    folder.write(record("same", "difference", []))
    folder.write(record("kettles", "no_meaningful_difference", []))
    async with served() as url:
        done = {each.organism: each for each in await validate_findings(url, folder, interactions=12)}
        again = await validate_findings(url, folder)
    test = done["same"].validation
    assert test is not None
    assert test.test_id.startswith("test-")
    assert "boil" in test.counted
    assert not test.validates
    assert done["kettles"].validation is None
    assert again == list(done.values())
    row = next(row for row in table_of([(plan, again)]).rows if row.organism == "same")
    assert row.validated_by_another is not None
    assert row.validated_by_another.estimate == 0


async def test_a_test_that_failed_is_made_again(evaluation_settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a server had no room for stood as a finding that fresh prompts do not bear out, for good."""
    from diffing_mcp.queries import hypotheses

    collect, left = hypotheses.collect, [OutOfRoom("no room now")]

    def without_room(*given: Any) -> Any:
        if left:
            raise left.pop()
        return collect(*given)

    monkeypatch.setattr(hypotheses, "collect", without_room)
    folder = EvaluationFolder("old")
    for organism in ("kettles", "same"):
        folder.write(record(organism, "difference", []))
    async with served() as url:
        with pytest.raises(ToolFailed, match="no room now"):
            await validate_findings(url, folder, interactions=12)
        assert [each.validation is None for each in folder.records()] == [True, False], "the others are tested"
        await validate_findings(url, folder, interactions=12)
    assert all(each.validation is not None and each.validation.test_id for each in folder.records())


async def test_validating_keeps_what_others_store_meanwhile(
    evaluation_settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = EvaluationFolder("old")
    folder.write(record("same", "difference", []))

    async def meanwhile(*given: object) -> RecordedTest:
        folder.write(folder.records()[0].model_copy(update={"seed": 7}))
        return RecordedTest(test_id="test-1", counted="words", verdict="raised", validates=True)

    monkeypatch.setattr("diffing_mcp.agents.validation.validate", meanwhile)
    async with served() as url:
        (done,) = await validate_findings(url, folder, interactions=12)
    assert folder.records() == [done]
    assert (done.seed, done.validation and done.validation.test_id) == (7, "test-1")
