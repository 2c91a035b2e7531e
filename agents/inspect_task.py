"""LLM investigators on Inspect AI: one task with the arms `blackbox` and `method`, any Inspect model, the tools of the
running MCP server.

Each sample opens an investigation of its own, whose bearer token goes into the sample's MCP connection, runs Inspect's
react agent until it has submitted a finding (or a limit ends it), and is scored by the graders. The answer is never in
what the agent sees: the sample's input names the opaque label.

Inspect is imported here only (extra `eval`); nothing else of the project needs it, apart from an LLM grader.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import nan
from pathlib import PurePosixPath
from typing import Any

from inspect_ai import Task, eval_async
from inspect_ai.agent import AgentPrompt, AgentState, as_solver, react
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import EvalLog, EvalSample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageTool,
    ChatMessageUser,
    ContentReasoning,
    ModelUsage,
    execute_tools,
    get_model,
    trim_messages,
)
from inspect_ai.scorer import Metric, Score, Scorer, Target, ci, ci_wilson, mean, scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.tool import MCPServer, ToolFunction, mcp_server_http, mcp_tools
from inspect_ai.util import apply_limits, message_limit, time_limit, token_limit

from diffing_mcp.agents.arms import Arm
from diffing_mcp.agents.cells import TOOL_CALLS, Cell, RunningEvaluation
from diffing_mcp.agents.costs import CapReached
from diffing_mcp.agents.investigations import OpenInvestigation
from diffing_mcp.agents.llm import SECONDS_OF_ANSWER, language_model, tokens_used
from diffing_mcp.agents.mcp_session import called
from diffing_mcp.agents.prompts import ASSIGNMENT, KEEP_GOING, LAST_WORDS, instructions
from diffing_mcp.agents.records import LOGS, EvaluationRecord, Message, TokenUsage, ToolCall
from diffing_mcp.core.errors import DiffingError

MAX_NUDGES = 2
"""How often a model that stops without submitting is asked to go on."""
SECONDS_OF_LAST_WORDS = 300
NO_ROOM = "model_length"
"""Inspect's word for a conversation that is longer than the model's context."""
KEPT = (1.0, 0.7, 0.4, 0.1)
"""Shares of a conversation, its latest part, that are tried until the model has room for its last words."""
RETRIES = 7
"""How often an investigator's model is asked again after an error of the network, over some 6 minutes. Without a bound
Inspect waits for ever, and an investigation without a model would end as one that found nothing."""

Done = Callable[[EvaluationRecord], None]


class NoAnswer(DiffingError):
    """An investigator's model did not answer; the investigation has failed and is tried again."""

    code = "no_answer"


def investigation_task(
    running: RunningEvaluation, arm: Arm, cells: Sequence[Cell], done: Done = lambda record: None
) -> Task:
    """The Inspect task of one arm: a sample a cell, target = the organism's name (in the log, never shown to the
    agent).

    `done` gets the record of each sample as soon as it is graded.
    """
    samples = [
        Sample(
            id=cell.id,
            input="Investigate the pair whose label is given when the investigation opens.",
            target=cell.organism,
            metadata={"organism": cell.organism, "repeat": cell.repeat, "seed": cell.seed},
        )
        for cell in cells
    ]
    by_id = {cell.id: cell for cell in cells}
    return Task(
        name=f"investigate_{arm}"[:100],  # it becomes part of a file's name
        dataset=MemoryDataset(samples, name="organisms"),
        solver=investigator(running, by_id),
        scorer=finding_scorer(running, by_id, done),
    )


@solver
def investigator(running: RunningEvaluation, cells: dict[str, Cell]) -> Solver:
    """Open an investigation, connect with its token, and let the react agent work until it has submitted. One that a
    limit ends is asked for its finding once more, with that tool alone, beyond the limit.
    """

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        cell = cells[str(state.sample_id)]
        try:
            opened = await running.open(cell)
        except CapReached as reached:
            running.stopped = reached
            raise
        # For the scorer. The token stays out of the log.
        state.metadata |= {"investigation": opened.id, "label": opened.label, "started": time.monotonic()}
        state.messages = [ChatMessageUser(content=ASSIGNMENT.format(label=opened.label))]
        server = mcp_server_http(
            name="diffing", url=running.url, authorization=opened.token, timeout=30, sse_read_timeout=300
        )
        agent = react(
            prompt=AgentPrompt(
                instructions=instructions(cell.arm, running.plan.interactions, TOOL_CALLS),
                assistant_prompt=None,
                submit_prompt=None,
            ),
            tools=[mcp_tools(server)],
            submit=False,
            on_continue=_until_submitted(partial(_note, running, cell, opened, time.monotonic())),
        )
        limits = running.limits
        bounds = [message_limit(limits.get("message_limit")), token_limit(limits.get("token_limit"))]
        with apply_limits([*bounds, time_limit(limits.get("time_limit"))], catch_errors=True) as scope:
            state = await as_solver(agent)(state, generate)
        limit: str | None = scope.limit_error.type if scope.limit_error is not None else None
        if limit is None and state.output.stop_reason == NO_ROOM:
            limit = "context"
            state.messages.pop()  # the refusal
        if limit is not None:
            state.metadata["limit"] = limit
            if not _submitted(state.messages):
                await _last_words(state, server)
        return state

    return solve


async def _last_words(state: TaskState, server: MCPServer) -> None:
    """Ask for the finding that the investigation has not handed in. Nothing else can be called any more.

    Raises:
        NoAnswer: the model gives none in time.
    """
    tools = await mcp_tools(server, tools=["submit_finding"]).tools()
    # Providers refuse a conversation in which a call has no answer.
    last = state.messages[-1]
    calls = last.tool_calls or [] if isinstance(last, ChatMessageAssistant) else []
    state.messages += [
        ChatMessageTool(content="Not run: the limit was reached first.", tool_call_id=call.id, function=call.function)
        for call in calls
    ]
    state.messages.append(ChatMessageUser(content=LAST_WORDS))
    before = len(state.messages)
    with apply_limits([time_limit(SECONDS_OF_LAST_WORDS)], catch_errors=True):
        for share in KEPT:
            sent = await trim_messages(state.messages, share) if share < 1 else state.messages
            state.output = await get_model().generate(
                sent, tools=tools, tool_choice=ToolFunction(name="submit_finding")
            )
            if state.output.stop_reason != NO_ROOM:
                break
        state.messages.append(state.output.message)
        answered = await execute_tools(state.messages, tools)
        state.messages.extend(answered.messages)
    if len(state.messages) == before:
        raise NoAnswer(f"The model did not answer within {SECONDS_OF_LAST_WORDS} s when asked for its finding.")


def _submitted(messages: Sequence[ChatMessage]) -> bool:
    by_more_tools = {
        call.id
        for message in messages
        if isinstance(message, ChatMessageAssistant)
        for call in message.tool_calls or ()
        if called(call.function, call.arguments)[0] == "submit_finding"
    }
    return any(
        isinstance(message, ChatMessageTool)
        and (message.function == "submit_finding" or message.tool_call_id in by_more_tools)
        and message.error is None
        for message in messages
    )


def _note(running: RunningEvaluation, cell: Cell, opened: OpenInvestigation, started: float) -> None:
    running.note_usage(cell, opened, usage_so_far(), time.monotonic() - started)


def _until_submitted(each_turn: Callable[[], None]) -> Callable[[AgentState], Any]:
    nudges = 0

    async def on_continue(state: AgentState) -> bool | str:
        nonlocal nudges
        each_turn()
        if _submitted(state.messages):
            return False
        if state.output.message.tool_calls:
            return True
        nudges += 1
        return KEEP_GOING if nudges <= MAX_NUDGES else False

    return on_continue


def _mean() -> list[Metric]:
    # Organisms are resampled as wholes: repeats on one of them are not independent.
    return [mean(), ci(method="bootstrap", cluster="organism")]


def _rate() -> list[Metric]:
    return [mean(), ci_wilson()]


# Where a value does not apply to a sample it is NaN, which Inspect leaves out.
_METRICS = {
    "grade": _mean(),
    "fact_recall": _mean(),
    "topic_named": _rate(),
    "verdict_correct": _rate(),
    "false_positive": _rate(),
}


@scorer(metrics=_METRICS)
def finding_scorer(running: RunningEvaluation, cells: dict[str, Cell], done: Done) -> Scorer:
    """Close the investigation, grade its finding (fact recall, and the LLM grader when there is one), hand the record
    over.
    """

    async def score(state: TaskState, target: Target) -> Score:
        record = running.blank_record(cells[str(state.sample_id)])
        record.investigation_id, record.label = state.metadata.get("investigation"), state.metadata.get("label")
        now = time.monotonic()
        record.seconds = round(now - float(state.metadata.get("started", now)), 2)
        record.transcript = transcript_of(state.messages)
        record.limit = state.metadata.get("limit")
        record.usage, record.log = usage_so_far(), _log_of_sample()
        # What the provider says of a conversation that is too long is no finding.
        await running.complete(record, said="" if state.output.stop_reason == NO_ROOM else state.output.completion)
        done(record)
        recall = record.fact_recall
        return Score(
            value={
                "grade": nan if record.mean_score is None else record.mean_score,
                "fact_recall": recall.recall if recall and not record.null else nan,
                "topic_named": float(recall.topic_named) if recall and not record.null else nan,
                "verdict_correct": float(recall.verdict_correct) if recall else nan,
                "false_positive": float(record.false_positive) if record.null else nan,
            },
            answer=record.finding.statement,
            explanation="\n\n".join(
                [*(recall.reasons if recall else []), *(grade.reasoning for grade in record.hypothesis_grades)]
            ),
            metadata={"null": record.null, "family": record.family, "record": record.cell_id},
        )

    return score


def transcript_of(messages: Sequence[ChatMessage]) -> list[Message]:
    """Inspect's messages as ours: text, reasoning and tool calls; images and audio are left out."""
    transcript = []
    for message in messages:
        reasoning = None
        if not isinstance(message.content, str):
            reasoning = (
                "\n".join(part.reasoning for part in message.content if isinstance(part, ContentReasoning)) or None
            )
        calls = []
        if isinstance(message, ChatMessageAssistant):
            calls = [
                ToolCall(id=call.id, name=call.function, arguments=dict(call.arguments))
                for call in message.tool_calls or []
            ]
        ours = Message(role=message.role, content=message.text, reasoning=reasoning, tool_calls=calls)
        if isinstance(message, ChatMessageTool):
            ours.tool_call_id, ours.tool_name = message.tool_call_id, message.function
            if message.error is not None:
                ours.is_error, ours.content = True, message.error.message
        transcript.append(ours)
    return transcript


def usage_so_far() -> list[TokenUsage]:
    """Tokens this sample has used, by model."""
    from inspect_ai.model._model import sample_model_usage

    return _usage(sample_model_usage())


def _log_of_sample() -> str | None:
    """The file that Inspect writes this sample to, relative to the evaluation's folder."""
    from inspect_ai.log._samples import sample_active

    active = sample_active()
    return None if active is None else _log_name(active.log_location)


def _log_name(location: str) -> str:
    return f"{LOGS}/{PurePosixPath(location).name}"


def _usage(by_model: Mapping[str, ModelUsage]) -> list[TokenUsage]:
    return [tokens_used(name, usage) for name, usage in by_model.items()]


async def run_cells(running: RunningEvaluation, cells: Sequence[Cell], done: Done) -> list[EvalLog]:
    """Run these cells with the plan's model; samples that fail leave a failed record, with what they said and cost, so
    that a second call tries them again.

    Raises:
        CapReached: the suite has spent what it may; cells that were not begun have no record.
    """
    # Each record is reported as it comes, and stdout may be JSON for a program.
    os.environ.setdefault("INSPECT_DISPLAY", "none")
    model = language_model(running.plan.investigator, running.investigator_url)
    finished: set[str] = set()

    def noted(record: EvaluationRecord) -> None:
        finished.add(record.cell_id)
        running.begun.pop(record.cell_id, None)
        done(record)

    arms = [arm for arm in running.plan.arms if any(cell.arm == arm for cell in cells)]
    logs: list[EvalLog] = []
    for arm in arms:
        task = investigation_task(running, arm, [cell for cell in cells if cell.arm == arm], noted)
        logs += await eval_async(
            task,
            model=model,
            log_dir=str(running.folder.path / LOGS),
            max_samples=running.limits.get("max_samples", 4),
            fail_on_error=False,
            max_retries=RETRIES,
            attempt_timeout=SECONDS_OF_ANSWER,
        )
    samples = {str(sample.id): (sample, _log_name(log.location)) for log in logs for sample in log.samples or []}
    for cell in cells:
        if cell.id in finished:
            continue
        sample, log_file = samples.get(cell.id, (None, None))
        begun = sample is not None and "investigation" in sample.metadata
        if begun or running.stopped is None:
            noted(await _failed(running, cell, sample, log_file))
    if running.stopped is not None:
        raise running.stopped
    return logs


async def _failed(
    running: RunningEvaluation, cell: Cell, sample: EvalSample | None, log: str | None
) -> EvaluationRecord:
    """The record of a cell whose sample failed; its investigation is closed."""
    record = running.blank_record(cell)
    record.status, record.error = "failed", "the sample did not finish; see the Inspect log"
    record.log = log
    if sample is not None:
        record.error = sample.error.message if sample.error is not None else record.error
        record.transcript, record.usage = transcript_of(sample.messages), _usage(sample.model_usage)
        record.seconds = round(sample.total_time or 0.0, 2)
        record.investigation_id, record.label = sample.metadata.get("investigation"), sample.metadata.get("label")
    await running.complete(record)
    return record
