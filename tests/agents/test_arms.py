"""The controls of an evaluation: some methods alone, results of another pair, and an investigator that looks for the
answer where it must not be.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from diffing_mcp.agents.arms import Arm, chosen_arms, decoy_of, tools_of
from diffing_mcp.agents.baseline_cheat import cheat_evidence
from diffing_mcp.agents.cells import RunningEvaluation
from diffing_mcp.agents.evaluation import run_evaluation
from diffing_mcp.agents.grading import Grading
from diffing_mcp.agents.mcp_session import Session, ToolFailed, connect
from diffing_mcp.agents.records import EvaluationFolder
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.tools_pairs import ResidentRow
from diffing_mcp.methods.runs.store import default_store
from tests.agents.conftest import served
from tests.agents.test_evaluation import QUICK, plan


def test_arms_are_checked_by_name() -> None:
    assert chosen_arms("method:kl+pca, blackbox,blackbox") == ["method:kl+pca", "blackbox"]
    assert tools_of("method:kl+pca") == "blackbox,overview,view_run,kl,pca"
    assert [tools_of(arm) for arm in ("blackbox", "method", "placebo", "cheat")] == ["blackbox", *["method"] * 3]
    for wrong in ("", "greybox", "method:", "method:kl pca"):
        with pytest.raises(InvalidInput, match="placebo"):
            chosen_arms(wrong)
    with pytest.raises(ValidationError):
        TypeAdapter(Arm).validate_python("greybox")


def test_a_placebo_looks_at_the_other_pairs_by_turns() -> None:
    organisms = ["a", "b", "c"]
    assert [decoy_of("placebo", "a", organisms, repeat) for repeat in range(3)] == ["b", "c", "b"]
    assert decoy_of("method", "a", organisms, 0) is None
    with pytest.raises(InvalidInput, match="at least two"):
        decoy_of("placebo", "a", ["a"], 0)


def test_a_placebo_never_shows_a_variant_of_what_was_taught() -> None:
    organisms = ["cakes", "cakes/diluted", "trams", "cakes@other"]
    assert {decoy_of("placebo", "cakes/diluted", organisms, repeat) for repeat in range(4)} == {"trams"}
    with pytest.raises(InvalidInput, match="variants of one"):
        decoy_of("placebo", "cakes", ["cakes", "cakes/diluted"], 0)


async def test_methods_of_a_placebo_see_the_decoy_and_questions_the_pair(evaluation_settings: Path) -> None:
    async with served() as url:
        opened = investigations.create("kettles", "method", methods_pair="same")
        async with connect(url, opened.token) as session:
            small = {"max_samples": 8, "max_tokens": 12}
            run = await session.call("kl", {"pair": opened.label, **small})
            asked = await session.call(
                "ask_models", {"pair": opened.label, "prompts": ["tell me"], "max_new_tokens": 8}
            )
    assert run.run_id is not None
    record = default_store().get(run.run_id)
    assert record.result_json()["kl_finetuned_base"]["mean"] == 0, "the methods look at the pair without a difference"
    (answer,) = asked.result["answers"]
    assert answer["base"] != answer["finetuned"], "the questions go to the pair itself"


async def test_one_method_alone(evaluation_settings: Path) -> None:
    async with served() as url:
        opened = investigations.create("kettles", tools_of("method:kl"), known_tools=("kl", "overview", "view_run"))
        async with connect(url, opened.token) as session:
            names = await session.tool_names()
            with pytest.raises(ToolFailed, match="no tool 'pca'"):
                await session.call("pca", {"pair": opened.label})
    assert {"kl", "overview", "view_run", "ask_models", "submit_finding"} <= set(names)
    assert "weight_difference" not in names


@pytest.mark.parametrize("leak", ["tools_pairs._description_text", "tools_pairs._resident", "prompts._names"])
async def test_a_cheat_finds_a_name_that_slips_out(
    evaluation_settings: Path, monkeypatch: pytest.MonkeyPatch, leak: str
) -> None:
    """Answers of tools that estimate nothing and completions were never read, only their complaints were; and of
    answers the text alone, not the data.
    """
    leaked = {
        "tools_pairs._description_text": "made of cake_bake",
        "tools_pairs._resident": [ResidentRow(label="with cake_bake", megabytes=1, in_use=False)],
        "prompts._names": ["cake_bake"],
    }
    monkeypatch.setattr(f"diffing_mcp.mcp_server.{leak}", lambda *given: leaked[leak])

    async def unlisted(session: Session) -> list[str]:
        return ["describe_pair", "list_pairs"]

    monkeypatch.setattr(Session, "tool_names", unlisted)
    async with served() as url:
        opened = investigations.create("kettles", "method")
        async with connect(url, opened.token) as session:
            assert (await cheat_evidence(session, opened.label)).topic_words == ("cake_bake",)


@pytest.mark.long
async def test_a_cheat_finds_nothing_and_a_placebo_finishes(evaluation_settings: Path) -> None:
    async with served() as url:
        running = RunningEvaluation(plan(arms=["placebo", "cheat"]), EvaluationFolder("tiny"), Grading(), url, QUICK)
        records = await run_evaluation(running)
    assert [record.status for record in records] == ["completed"] * 4, [record.error for record in records]
    cheats = [record for record in records if record.arm == "cheat"]
    assert {record.finding.verdict for record in cheats} == {"no_meaningful_difference"}
    assert all(record.budgets["model_interactions"].used == 0 for record in cheats)
    read = sum(len(message.content) for message in cheats[0].transcript)
    assert read > 10_000, "it has read what there is"
