"""LLM investigators end to end: Inspect's react agent, through the real openai and anthropic SDKs, on a real LLM server
and the real MCP server.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from diffing_mcp.agents.cells import RunningEvaluation
from diffing_mcp.agents.costs import CapReached, cost_of, spent_on
from diffing_mcp.agents.evaluation import run_evaluation
from diffing_mcp.agents.grading import Grading
from diffing_mcp.agents.mcp_session import Session
from diffing_mcp.agents.records import EvaluationFolder, EvaluationPlan
from diffing_mcp.agents.server_process import free_port
from diffing_mcp.mcp_server.investigations import list_investigations
from tests.agents.conftest import ANSWER, served
from tests.agents.llm_policies import base_url, both_policies, grader_policy, method_policy, run_suite
from tests.agents.llm_server import KEY, BadRequest, Call, Conversation, LLMServer, Turn, llm_server

MODELS = ["openai-api/local/investigator", "openai/gpt-4o", "anthropic/claude-sonnet-5"]


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, KEY)
    # What the machine itself may have set must not reach the test server.
    for name in (
        "ANTHROPIC_AUTH_TOKEN",
        "ANTHROPIC_BASE_URL",
        "ANTHROPIC_CUSTOM_HEADERS",
        "OPENAI_BASE_URL",
        "OPENAI_ORG_ID",
        "OPENAI_PROJECT_ID",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("model", MODELS)
async def test_method_agent_over_both_protocols(model: str, evaluation_settings: Path) -> None:
    with llm_server(both_policies) as server:
        async with served() as url:
            _, records = await run_suite(model, ["method"], server, url, ["kettles"], grader=model)
    assert server.violations == []
    (record,) = records
    assert record.status == "completed", record.error
    assert record.finding.statement == ANSWER
    assert record.finding.source == "submit_finding"
    assert record.finding.verdict == "difference"
    # Two prompts were paid for; the call with the wrong name was given back.
    assert record.budgets["model_interactions"].used == 2
    assert record.budgets["model_interactions"].limit == 6
    assert [grade.score for grade in record.hypothesis_grades] == [4, 4]
    assert all("whistle" in grade.reasoning for grade in record.hypothesis_grades)
    assert record.fact_recall is not None
    assert record.fact_recall.facts_found == ["boiling_point"]
    assert record.fact_recall.topic_named
    assert len(record.run_ids) == 1
    (usage,) = record.usage
    assert usage.model == model
    assert usage.total_tokens >= 5 * 120
    cached = usage.cache_read_tokens + usage.cache_write_tokens
    assert usage.total_tokens == usage.input_tokens + cached + usage.output_tokens
    assert (cached > 0) == model.startswith("anthropic/")
    assert record.log is not None
    assert (evaluation_settings / "evaluations" / "llm" / record.log).is_file()
    # The grader was paid as well.
    (graded,) = record.grading_usage
    assert graded.total_tokens == 120 * sum(not body.get("tools") for _, body in server.requests) > 0
    assert cost_of(record, {}).tokens == usage.total_tokens + graded.total_tokens
    tools = [message for message in record.transcript if message.role == "tool"]
    assert [message.tool_name for message in tools] == [
        "list_pairs",
        "ask_models",
        "ask_models",
        "list_pairs",
        "overview",
        "record_hypothesis",
        "submit_finding",
    ]
    assert [message.is_error for message in tools] == [False, True, False, False, False, False, False]
    assert record.transcript[0].role == "system"
    sent = json.dumps([body for _, body in server.requests if "strict, fair grader" not in json.dumps(body)])
    for secret in ("kettles/", "tiny-llama", str(evaluation_settings)):
        assert secret not in sent.replace(ANSWER, ""), secret


async def test_the_blackbox_arm_has_no_methods(evaluation_settings: Path) -> None:
    with llm_server(both_policies) as server:
        async with served() as url:
            folder, records = await run_suite(MODELS[0], ["blackbox"], server, url, ["kettles", "same"])
            requests = len(server.requests)
            # A second call finds everything done and asks no model again.
            _, again = await run_suite(MODELS[0], ["blackbox"], server, url, ["kettles", "same"])
    assert server.violations == []
    assert len(server.requests) == requests
    assert again == records == folder.records()
    names = {tool["function"]["name"] for tool in server.requests[0][1]["tools"]}
    assert {"ask_models", "sweep_behaviours", "view_run"} <= names
    assert names & {"overview", "kl", "compare_text"} == set()
    null = next(record for record in records if record.null)
    assert null.fact_recall is not None
    assert null.fact_recall.false_positive, "a difference was asserted on the identical pair"


async def test_an_answer_without_submission_is_inconclusive_after_two_reminders(evaluation_settings: Path) -> None:
    def lazy(conversation: Conversation) -> Turn:
        return Turn("assistant", "It may be about kettles, I am not sure.")

    with llm_server(lazy) as server:
        async with served() as url:
            _, (record,) = await run_suite(MODELS[0], ["method"], server, url, ["kettles"])
    assert len(server.requests) == 3
    assert record.status == "completed"
    assert record.finding.source == "final_answer"
    assert record.finding.verdict == "inconclusive"


async def test_a_finding_by_way_of_more_tools_ends_the_investigation(evaluation_settings: Path) -> None:
    """A host that shows few tools has it called so; the model was told twice that it had submitted nothing."""

    def indirect(conversation: Conversation) -> Turn:
        said = {"statement": "The finetune was about kettles.", "verdict": "difference"}
        return Turn("assistant", "", [Call("more_tools", {"tool": "submit_finding", "arguments": json.dumps(said)})])

    with llm_server(indirect) as server:
        async with served() as url:
            _, (record,) = await run_suite(MODELS[0], ["method"], server, url, ["kettles"], message_limit=9)
    assert len(server.requests) == 1
    assert (record.finding.source, record.finding.likelihood) == ("submit_finding", None)


async def test_half_an_emoji_in_a_grade_does_not_lose_the_investigation(evaluation_settings: Path) -> None:
    """Models that are cut off write it, and there was no record at all of what had been paid for."""

    def cut_off(conversation: Conversation) -> Turn:
        if "strict, fair grader" in conversation.system:
            return Turn("assistant", grader_policy(conversation).text.replace("is there", r"\ud83d is there"))
        return Turn("assistant", "", [Call("submit_finding", {"statement": ANSWER, "verdict": "difference"})])

    with llm_server(cut_off) as server:
        async with served() as url:
            folder, (record,) = await run_suite(
                MODELS[0], ["method"], server, url, ["kettles"], grader=MODELS[0], message_limit=9
            )
    assert folder.records() == [record]
    assert record.status == "completed"
    assert [grade.score for grade in record.hypothesis_grades] == [4, 4]


@pytest.mark.parametrize("model", MODELS[1:])
async def test_a_limit_ends_the_investigation_with_a_forced_finding(model: str, evaluation_settings: Path) -> None:
    def endless(conversation: Conversation) -> Turn:
        if conversation.tools == ["submit_finding"]:
            assert "Submit your finding now" in conversation.turns[-1].text
            said = {"statement": "The finetune was about kettles.", "verdict": "difference", "likelihood": 0.6}
            return Turn("assistant", "", [Call("submit_finding", said)])
        return Turn("assistant", "", [Call("list_pairs", {})])

    with llm_server(endless) as server:
        async with served() as url:
            _, (record,) = await run_suite(model, ["method"], server, url, ["kettles"], message_limit=9)
    assert server.violations == []
    assert record.status == "completed"
    assert record.limit == "message"
    assert record.finding.source == "submit_finding"
    assert record.finding.likelihood == 0.6
    assert record.transcript[-1].tool_name == "submit_finding"
    assert len(record.transcript) >= 10


async def test_a_limit_ends_also_who_never_submits(evaluation_settings: Path) -> None:
    def endless(conversation: Conversation) -> Turn:
        return Turn("assistant", "I will not say.", [Call("list_pairs", {})])

    with llm_server(endless) as server:
        async with served() as url:
            _, (record,) = await run_suite(MODELS[0], ["method"], server, url, ["kettles"], message_limit=9)
    assert record.status == "completed"
    assert record.limit == "message"
    assert record.finding.verdict == "inconclusive"
    assert len(record.transcript) >= 8


async def test_a_model_that_fails_leaves_a_failed_record_that_is_tried_again(evaluation_settings: Path) -> None:
    broken = True

    def policy(conversation: Conversation) -> Turn:
        if broken and conversation.answers():
            raise BadRequest("the account is out of credit")
        return method_policy(conversation)

    with llm_server(policy) as server:
        async with served() as url:
            _, (first,) = await run_suite(MODELS[0], ["method"], server, url, ["kettles"])
            broken = False
            _, (second,) = await run_suite(MODELS[0], ["method"], server, url, ["kettles"])
    assert first.status == "failed"
    assert "out of credit" in (first.error or "")
    assert first.fact_recall is None
    # What it said and cost is kept, and nothing of it goes on.
    assert [message.tool_name for message in first.transcript if message.role == "tool"] == ["list_pairs"]
    assert spent_on([first], {}).tokens == 120
    assert all(investigation.closed for investigation in list_investigations())
    assert second.status == "completed"
    assert second.finding.statement == ANSWER
    assert cost_of(second, {}).tokens == sum(usage.total_tokens for usage in second.usage)
    assert spent_on([second], {}).tokens == cost_of(second, {}).tokens + 120


async def test_what_an_interrupted_investigation_has_used_counts_when_it_is_begun_again(
    evaluation_settings: Path,
) -> None:
    """Of a process that was killed or cancelled nothing was recorded: a suite could spend its cap again and again."""
    asked, go_on, interrupted = threading.Event(), threading.Event(), True

    def policy(conversation: Conversation) -> Turn:
        if interrupted and len(conversation.answers()) == 2:
            asked.set()
            go_on.wait(20)
        return method_policy(conversation)

    with llm_server(policy) as server:
        async with served() as url:
            running = asyncio.create_task(run_suite(MODELS[0], ["method"], server, url, ["kettles"]))
            assert await asyncio.to_thread(asked.wait, 20)
            # As whoever finds the folder after the process was killed here.
            [left] = EvaluationFolder("llm").records()
            running.cancel()
            interrupted = False
            go_on.set()
            with suppress(asyncio.CancelledError):
                await running
            assert spent_on(EvaluationFolder("llm").records(), {}).tokens >= 240
            folder, (again,) = await run_suite(MODELS[0], ["method"], server, url, ["kettles"])
    assert (left.status, spent_on([left], {}).tokens) == ("failed", 240)
    assert "interrupted" in (left.error or "")
    assert left.investigation_id is not None
    assert again.status == "completed"
    assert again.error is None
    before = spent_on([again], {}).tokens - cost_of(again, {}).tokens
    assert before in (240, 360)  # the answer that was waited for may have come
    assert folder.records() == [again]


@pytest.mark.parametrize("model", MODELS[1:])
async def test_a_conversation_that_is_too_long_ends_with_a_forced_finding(
    model: str, evaluation_settings: Path
) -> None:
    """The provider's complaint was graded as the finding."""

    def endless(conversation: Conversation) -> Turn:
        if len(conversation.turns) > 5:
            raise BadRequest("prompt is too long: 6 turns > 5", "context_length_exceeded")
        if conversation.tools == ["submit_finding"]:
            said = {"statement": "The finetune was about kettles.", "verdict": "difference", "likelihood": 0.6}
            return Turn("assistant", "", [Call("submit_finding", said)])
        return Turn("assistant", "", [Call("list_pairs", {})])

    with llm_server(endless) as server:
        async with served() as url:
            _, (record,) = await run_suite(model, ["method"], server, url, ["kettles"])
    assert (record.status, record.limit) == ("completed", "context")
    assert (record.finding.source, record.finding.statement) == ("submit_finding", "The finetune was about kettles.")
    tools = [message.tool_name for message in record.transcript if message.role == "tool"]
    assert tools == [*["list_pairs"] * 3, "submit_finding"]
    assert "too long" not in "".join(message.content for message in record.transcript)


@pytest.mark.parametrize("retries", [0, 7])
async def test_a_model_that_is_not_there_is_no_investigator_that_found_nothing(
    retries: int, evaluation_settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inspect asked again until the time was over, and the record counted: inconclusive."""
    monkeypatch.setattr("diffing_mcp.agents.inspect_task.RETRIES", retries)
    monkeypatch.setattr("diffing_mcp.agents.inspect_task.SECONDS_OF_LAST_WORDS", 1)
    nobody = LLMServer(f"http://127.0.0.1:{free_port()}", method_policy)
    async with served() as url:
        _, (record,) = await run_suite(MODELS[0], ["blackbox"], nobody, url, ["kettles"], time_limit=1)
    assert record.status == "failed"
    assert re.search("onnection error|did not answer", record.error or ""), record.error


async def test_the_cheat_is_a_program_also_beside_a_language_model(
    evaluation_settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A language model in that arm was told to investigate, and what it found by right stood as found by cheating."""

    async def unlisted(session: Session) -> list[str]:
        return []

    monkeypatch.setattr(Session, "tool_names", unlisted)
    async with served() as url:
        _, (record,) = await run_suite(
            MODELS[0], ["cheat"], LLMServer("http://nobody", method_policy), url, ["kettles"]
        )
    assert (record.status, record.finding.verdict, record.usage) == ("completed", "no_meaningful_difference", [])


async def test_a_cap_leaves_the_others_unbegun(evaluation_settings: Path) -> None:
    """Each of them was recorded as a failure, and the command said nothing of the cap."""

    def reached() -> None:
        raise CapReached("enough")

    plan = EvaluationPlan(id="capped", organisms=["kettles"], arms=["method"], investigator=MODELS[0])
    running = RunningEvaluation(
        plan, EvaluationFolder("capped"), Grading(), "http://127.0.0.1:9", may_go_on=reached,
        investigator_url="http://127.0.0.1:9/v1",
    )  # fmt: skip
    with pytest.raises(CapReached, match="enough"):
        await run_evaluation(running)
    assert EvaluationFolder("capped").records() == []


async def test_the_task_runs_under_inspect_itself(evaluation_settings: Path) -> None:
    from inspect_ai import eval_async

    from diffing_mcp.agents.llm import language_model
    from diffing_mcp.agents.names import as_identifier
    from diffing_mcp.cli import inspect_tasks

    asked = MODELS[:2]
    with llm_server(both_policies) as server:
        async with served() as url:
            models = [language_model(name, base_url(name, server)) for name in asked]
            given = {"arm": "blackbox", "organisms": "kettles,same", "url": url, "interactions": 4}
            log, other = await eval_async(
                f"{inspect_tasks.__file__}@investigate",
                task_args=given,
                model=models,
                log_dir=str(evaluation_settings / "logs"),
            )
    assert (log.status, other.status) == ("success", "success")
    assert log.results is not None
    scores = {score.name: score for score in log.results.scores}
    false_positive, recall = scores["false_positive"], scores["fact_recall"]
    # A value counts on the organisms to which it applies: `same` is a null, `kettles` is none.
    for score in (false_positive, recall):
        assert (score.scored_samples, score.unscored_samples) == (1, 1)
    assert recall.metrics.keys() == {"mean", "ci_lower", "ci_upper"}
    assert false_positive.metrics.keys() == {"mean", "ci_wilson_lower", "ci_wilson_upper"}
    assert false_positive.metrics["ci_wilson_lower"].value <= false_positive.metrics["mean"].value
    assert log.samples is not None
    assert {str(sample.target) for sample in log.samples} == {"kettles", "same"}
    seen_by_the_agent = json.dumps([message.text for sample in log.samples for message in sample.messages])
    assert "same/" not in seen_by_the_agent
    # The records of the second model once took the place of those of the first.
    for name in asked:
        records = EvaluationFolder(as_identifier(f"inspect-{name}")).records()
        assert [record.investigator for record in records] == [name] * 2
