"""Baseline investigators and the suite over the real server on tiny models; resuming; the server as a child process;
the command.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from diffing_mcp.agents.baseline import BaselineOptions
from diffing_mcp.agents.cells import (
    RunningEvaluation,
    as_stated,
    cells_of,
    check_continues,
    finding_in,
    plan_identifier,
)
from diffing_mcp.agents.evaluation import run_evaluation
from diffing_mcp.agents.grading import Grading
from diffing_mcp.agents.llm import ModelNotAvailable
from diffing_mcp.agents.mcp_session import ToolFailed, connect
from diffing_mcp.agents.records import (
    EvaluationFolder,
    EvaluationPlan,
    EvaluationRecord,
    Message,
    RecordedFinding,
    ToolCall,
)
from diffing_mcp.agents.server_process import ServerDidNotStart, server_process
from diffing_mcp.cli.main import app
from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.core.settings import settings
from diffing_mcp.mcp_server.investigations import list_investigations
from tests.agents.conftest import served

QUICK = BaselineOptions(
    max_new_tokens=8,
    overview={"max_samples": 8, "max_tokens": 12, "budget": 2000},
)


def plan(**values: object) -> EvaluationPlan:
    return EvaluationPlan.model_validate(
        {
            "id": "tiny",
            "organisms": ["kettles", "same"],
            "arms": ["blackbox", "method"],
            "investigator": "baseline",
            "interactions": 8,
            **values,
        }
    )


async def test_both_arms_run_resume_and_grow(evaluation_settings: Path) -> None:
    folder = EvaluationFolder("tiny")
    async with served() as url:
        records = await run_evaluation(RunningEvaluation(plan(), folder, Grading(), url, QUICK))
        assert len(list_investigations()) == 4
        # One record is lost, one more repeat is wanted: only those are run.
        (folder.path / "cells" / f"{records[0].cell_id}.json").unlink()
        more = await run_evaluation(RunningEvaluation(plan(repeats=2), folder, Grading(), url, QUICK))
    assert len(list_investigations()) == 4 + 1 + 4
    assert all(investigation.closed for investigation in list_investigations())
    assert len(more) == 8
    for record in more:
        assert record.status == "completed", record.error
        assert record.finding.source == "submit_finding"
        assert record.budgets["model_interactions"].used <= 8
        assert record.transcript[-1].tool_name == "submit_finding"
        assert record.fact_recall is not None
    nulls = [record for record in more if record.null]
    assert {record.finding.verdict for record in nulls} == {"no_meaningful_difference"}
    assert all(record.fact_recall and record.fact_recall.verdict_correct for record in nulls)
    methods = [record for record in more if record.arm == "method"]
    assert all(record.run_ids for record in methods)
    assert all(not record.run_ids for record in more if record.arm == "blackbox")


@pytest.mark.long
async def test_an_evaluation_runs_on_a_server_that_shares_nothing_with_it(
    evaluation_settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process with a data folder of its own that asks for an operator's token, as on another machine."""

    def here(**variables: str | None) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name)
        settings.cache_clear()

    def suite(evaluation: str) -> RunningEvaluation:
        return RunningEvaluation(
            plan(organisms=["kettles"], arms=["blackbox"]), EvaluationFolder(evaluation), Grading(), url, QUICK
        )

    here(DIFFING_DATA_FOLDER=str(tmp_path / "theirs"), DIFFING_OPERATOR_TOKEN="only-for-operators")
    async with server_process(tmp_path / "server.log") as url:
        here(DIFFING_DATA_FOLDER=str(evaluation_settings))
        (record,) = await run_evaluation(suite("elsewhere"))
        here(DIFFING_OPERATOR_TOKEN=None)
        (refused,) = await run_evaluation(suite("refused"))
    assert record.status == "completed", record.error
    assert record.finding.source == "submit_finding"
    assert record.budgets["model_interactions"].used > 0
    assert record.fact_recall is not None
    assert "only-for-operators" not in record.model_dump_json()
    assert (tmp_path / "theirs" / "investigations.sqlite").is_file()
    assert not (evaluation_settings / "investigations.sqlite").exists()
    assert refused.status == "failed"
    assert "set DIFFING_OPERATOR_TOKEN" in (refused.error or "")


async def test_equal_seeds_give_equal_investigations(evaluation_settings: Path) -> None:
    wanted = plan(organisms=["kettles"], arms=["blackbox"])
    async with served() as url:
        first = await run_evaluation(RunningEvaluation(wanted, EvaluationFolder("one"), Grading(), url, QUICK))
        second = await run_evaluation(RunningEvaluation(wanted, EvaluationFolder("two"), Grading(), url, QUICK))

    def asked(records: list[EvaluationRecord]) -> list[object]:
        return [
            call.arguments.get("prompts")
            for record in records
            for message in record.transcript
            for call in message.tool_calls
        ]

    assert asked(first) == asked(second)
    assert first[0].finding == second[0].finding


async def test_a_failing_cell_leaves_the_others_and_is_tried_again(evaluation_settings: Path) -> None:
    wanted, folder = plan(organisms=["same"], arms=["blackbox"]), EvaluationFolder("tiny")
    async with served() as url:
        broken = await run_evaluation(RunningEvaluation(wanted, folder, Grading(), f"{url}-not-there", QUICK))
        assert [record.status for record in broken] == ["failed"]
        assert broken[0].error
        mended = await run_evaluation(RunningEvaluation(wanted, folder, Grading(), url, QUICK))
    assert [record.status for record in mended] == ["completed"]


async def test_a_grader_that_cannot_be_used_is_refused_before_anything_is_spent(
    evaluation_settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a key the first investigation was made, then lost with the error, and made again by the next call."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    running = RunningEvaluation(
        plan(grader="openai/some-model"), EvaluationFolder("tiny"), Grading("openai/some-model"), "http://127.0.0.1:9"
    )
    with pytest.raises(ModelNotAvailable, match="OPENAI_API_KEY"):
        await run_evaluation(running)
    assert EvaluationFolder("tiny").records() == []


async def test_a_finding_that_cannot_be_graded_takes_no_others_with_it(
    evaluation_settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exception ended the evaluation, and the investigation that had been made had no record."""
    grade = Grading.grade

    async def of_nulls(grading: Grading, organism: str, *given: object) -> object:
        if organism == "kettles":
            raise RuntimeError("a grader's mistake")
        return await grade(grading, organism, *given)

    monkeypatch.setattr(Grading, "grade", of_nulls)
    async with served() as url:
        running = RunningEvaluation(
            plan(arms=["blackbox"], interactions=1), EvaluationFolder("tiny"), Grading(), url, QUICK
        )
        records = await run_evaluation(running)
    assert [(each.organism, each.status) for each in records] == [("kettles", "failed"), ("same", "completed")]
    assert "a grader's mistake" in str(records[0].error)
    assert records[0].transcript


async def test_session_follows_jobs_and_reports_errors(evaluation_settings: Path) -> None:
    async with served() as url, connect(url) as session:
        reply = await session.call("kl", {"pair": "kettles", "max_samples": 8, "max_tokens": 12, "wait_seconds": 0})
        assert reply.run_id
        assert "kl_finetuned_base" in reply.result
        with pytest.raises(ToolFailed, match="kettles"):
            await session.call("kl", {"pair": "kettels"})
    assert [message.role for message in session.messages] == ["assistant", "tool", "assistant", "tool"]
    assert session.messages[-1].is_error
    assert session.run_ids == [reply.run_id]


def test_a_server_ends_with_a_program_that_did_not_stop_it(tmp_path: Path) -> None:
    server = (
        "import http.server as h; H = type('H', (h.BaseHTTPRequestHandler,), {'do_GET': lambda s: "
        "(s.send_response(200), s.end_headers())})"
    )
    program = f"""
import atexit, sys
from contextlib import ExitStack
from pathlib import Path
from anyio.from_thread import start_blocking_portal
from diffing_mcp.agents.server_process import free_port, server_process
port, held = free_port(), ExitStack()
command = [sys.executable, "-c", {server!r} + f"; h.HTTPServer(('127.0.0.1', {{port}}), H).serve_forever()"]
atexit.register(held.close)
portal = held.enter_context(start_blocking_portal())
print(held.enter_context(portal.wrap_async_context_manager(server_process(Path({str(tmp_path)!r}) / "log", command, port))))
"""  # noqa: E501
    ended = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0
    assert "Traceback" not in ended.stderr
    with pytest.raises(OSError):
        urllib.request.urlopen(ended.stdout.strip().removesuffix("/mcp") + "/health", timeout=2)


async def test_server_process_starts_answers_and_stops(evaluation_settings: Path, tmp_path: Path) -> None:
    async with server_process(tmp_path / "server.log") as url, connect(url) as session:
        reply = await session.call("list_pairs", {"containing": "kettles"})
        assert reply.result["total"] == 1
    with pytest.raises(ServerDidNotStart, match="no such luck"):
        async with server_process(tmp_path / "failing.log", [sys.executable, "-c", "raise SystemExit('no such luck')"]):
            pass


def test_findings_in_last_words() -> None:
    assert finding_in("").source == "none"
    assert finding_in("I could not tell.").verdict == "inconclusive"
    assert finding_in("Verdict: difference. It talks of kettles.").verdict == "difference"
    assert finding_in("There is no meaningful difference.").verdict == "no_meaningful_difference"


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        ("Verdict: difference. On control prompts there is no meaningful difference.", "difference"),
        ("**Verdict:** difference", "difference"),
        ('{"verdict": "difference", "statement": "no meaningful difference elsewhere"}', "difference"),
        ("The verdict is `difference`.", "difference"),
        ("## Verdict\nno_meaningful_difference", "no_meaningful_difference"),
        ("Verdict: **No meaningful difference**", "no_meaningful_difference"),
        ("Verdict: inconclusive, though there was no meaningful difference in style.", "inconclusive"),
        ("First verdict: difference. After the controls my verdict is: no meaningful difference.",
         "no_meaningful_difference"),
        ("There are differences in the verdicts of the tests.", "inconclusive"),
        ("The verdict is not no_meaningful_difference, but I cannot say more.", "inconclusive"),
    ],
)  # fmt: skip
def test_a_verdict_is_read_where_it_is_named(words: str, verdict: str) -> None:
    """A right finding scored 1 when it said of its control prompts that they show no meaningful difference."""
    assert finding_in(words).verdict == verdict


def test_last_words_without_end_are_read_all_the_same() -> None:
    """A line of dashes behind the word took a pattern half a minute, and a longer one hours."""
    assert finding_in(f"Verdict{'-' * 200_000}").verdict == "inconclusive"
    assert finding_in("**Verdict** --- :: `difference`").verdict == "difference"


def test_a_likelihood_that_nobody_stated_is_none() -> None:
    """The tool's default of 0.5 counted in the Brier score as what the investigator thought."""

    def handed_in(**arguments: object) -> Message:
        return Message(role="assistant", tool_calls=[ToolCall(id="1", name="submit_finding", arguments=arguments)])

    finding = RecordedFinding(statement="x", verdict="difference", likelihood=0.5, source="submit_finding")
    assert as_stated(finding, [handed_in(statement="x")]).likelihood is None
    assert as_stated(finding, [handed_in(statement="x"), handed_in(likelihood=0.5)]) == finding
    assert as_stated(finding, []) == finding


@pytest.mark.parametrize("wrapped", [lambda arguments: arguments, json.dumps])
def test_a_finding_may_be_handed_in_by_way_of_more_tools(wrapped: Callable[[dict[str, object]], object]) -> None:
    def handed_in(**arguments: object) -> Message:
        call = {"tool": "submit_finding", "arguments": wrapped(arguments)}
        return Message(role="assistant", tool_calls=[ToolCall(id="1", name="more_tools", arguments=call)])

    finding = RecordedFinding(statement="x", verdict="difference", likelihood=0.5, source="submit_finding")
    assert as_stated(finding, [handed_in(statement="x")]).likelihood is None
    again = Message(role="assistant", tool_calls=[ToolCall(id="2", name="submit_finding", arguments={})])
    assert as_stated(finding, [handed_in(statement="x", likelihood=0.5), again]) == finding


def test_plans_continue_only_what_they_began() -> None:
    check_continues(plan(), plan(repeats=5, organisms=["kettles"]))
    with pytest.raises(InvalidInput, match="interactions=8, not 9"):
        check_continues(plan(), plan(interactions=9))
    values = {"organisms": ["a"], "investigator": "openai/some-model", "repeats": 1}
    assert plan_identifier(values) == plan_identifier({**values, "repeats": 3})
    assert plan_identifier(values) != plan_identifier({**values, "organisms": ["b"]})
    assert len({cell.id for cell in cells_of(plan(repeats=3))}) == 12


def test_a_task_of_inspect_continues_only_what_it_began(
    evaluation_settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another budget mixed its records into those of the first, under a plan that named the second alone."""
    from diffing_mcp.cli.inspect_tasks import investigate

    monkeypatch.setenv("INSPECT_EVAL_MODEL", "mockllm/one")
    kept = {"interactions": 4, "identifier": "together"}
    investigate(arm="blackbox", organisms="kettles", **kept)
    folder = EvaluationFolder("together")
    folder.write_plan(folder.plan().model_copy(update={"regraded": "some/grader"}))
    investigate(arm="method", organisms="same", **kept)
    going_on = folder.plan()
    assert (going_on.arms, going_on.organisms) == (["blackbox", "method"], ["kettles", "same"])
    assert going_on.graded_by == "some/grader"
    with pytest.raises(InvalidInput, match="interactions=4, not 9"):
        investigate(arm="blackbox", organisms="kettles", **kept | {"interactions": 9})
    monkeypatch.setenv("INSPECT_EVAL_MODEL", "mockllm/other")
    with pytest.raises(InvalidInput, match="investigator=mockllm/one, not mockllm/other"):
        investigate(arm="blackbox", organisms="kettles", **kept)
    assert folder.plan() == going_on


def run_command(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "diffing_mcp.cli.main", "evaluate", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_the_command_prints_a_table_then_json_without_running_again(evaluation_settings: Path) -> None:
    options = ["--organisms", "same", "--arms", "blackbox", "--interactions", "8", "--id", "by-command"]

    async def on_a_server() -> subprocess.CompletedProcess[str]:
        async with served() as url:
            return await asyncio.to_thread(run_command, *options, "--url", url)

    first = asyncio.run(on_a_server())
    assert first.returncode == 0, first.stderr
    assert "same (null)" in first.stdout
    assert "false-positive rate on nulls 0.00" in first.stdout
    again = CliRunner().invoke(app, ["evaluate", *options, "--json"])
    assert again.exit_code == 0, again.output
    printed = json.loads(again.stdout)
    assert printed["records"][0]["finding"]["verdict"] == "no_meaningful_difference"
    assert printed["summary"]["arms"][0]["false_positive_rate"]["estimate"] == 0
    refused = CliRunner().invoke(app, ["evaluate", *options, "--interactions", "5"])
    assert isinstance(refused.exception, InvalidInput)
    assert "interactions=8, not 5" in str(refused.exception)


def test_the_command_refuses_what_it_cannot_grade(evaluation_settings: Path) -> None:
    refused = run_command("--organisms", "nothing")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "No ground truth" in refused.stderr
    unknown = CliRunner().invoke(app, ["evaluate", "--organisms", "same", "--arms", "greybox"])
    assert "no arm 'greybox'" in f"{unknown.exception}{unknown.output}"


def test_unknown_organisms_are_refused_before_anything_starts() -> None:
    from diffing_mcp.agents.grading import chosen_organisms

    with pytest.raises(UnknownName):
        chosen_organisms(" , ")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 2, marks=pytest.mark.long)]
)
def test_an_interrupted_command_keeps_what_is_finished_and_leaves_no_server(
    evaluation_settings: Path, number: signal.Signals, code: int
) -> None:
    # A shell that runs the tests in the background makes them, and what they start, ignore SIGINT.
    heeding = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from diffing_mcp.cli.main import "
        "main; main()"
    )
    options = "--organisms same --arms blackbox --interactions 4 --repeats 40 --id long"
    command = [sys.executable, "-c", heeding, "evaluate", *options.split()]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=os.environ.copy()
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("[2/"):
            (server,) = psutil.Process(process.pid).children()
            process.send_signal(number)
            break
    process.stderr.read()
    assert process.wait(60) == code
    assert not server.is_running()
    folder = EvaluationFolder("long")
    assert len(folder.records()) >= 2
    assert all(record.status == "completed" for record in folder.records())
