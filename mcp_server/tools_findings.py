"""Hypotheses and the final finding."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, Field

from diffing_mcp.mcp_server import findings
from diffing_mcp.mcp_server.call import Call
from diffing_mcp.mcp_server.declarations import Arguments, Reply, ToolDeclaration
from diffing_mcp.mcp_server.findings import Evidence, Finding, FindingVerdict, Hypothesis, Status
from diffing_mcp.mcp_server.hypothesis_tests import with_verdicts

EVIDENCE = 'What it rests on, as [{"source": run id, job id or `prompt`, "note": what was seen}].'


class RecordHypothesisArguments(Arguments):
    """Arguments of record_hypothesis."""

    statement: str | None = Field(
        None,
        min_length=1,
        max_length=4000,
        description="What was changed, specific enough to be wrong. Needed for a new one.",
    )
    likelihood: float | None = Field(None, ge=0, le=1, description="How likely it is. Needed for a new one.")
    number: int | None = Field(None, ge=1, le=2**31 - 1, description="Change this one instead; what is left out stays.")
    status: Status | None = None
    reasoning: str = Field("", max_length=4000)
    evidence: list[Evidence] = Field(
        default_factory=list, max_length=20, description=f"{EVIDENCE} Added to what there is."
    )


class Board(BaseModel):
    """All hypotheses."""

    hypotheses: list[Hypothesis]


class RecordHypothesisResult(BaseModel):
    """The entry, and all others in short."""

    recorded: Hypothesis
    others: list[str]


class SubmitFindingArguments(Arguments):
    """Arguments of submit_finding."""

    verdict: FindingVerdict = Field(
        description=(
            "`no_meaningful_difference` when the finetune taught nothing that shows: a full answer that can be right. "
            "`inconclusive` when the evidence decides neither."
        )
    )
    statement: str = Field(
        min_length=1,
        max_length=8000,
        description=(
            "What was changed: topic, behaviour and details, as specific as the evidence allows; or why there is no "
            "difference."
        ),
    )
    likelihood: float = Field(0.5, ge=0, le=1, description="How sure you are.")
    evidence: list[Evidence] = Field(default_factory=list, max_length=40, description=EVIDENCE)


async def record_hypothesis(call: Call, arguments: RecordHypothesisArguments) -> Reply:
    recorded = findings.record_hypothesis(
        call.caller.scope,
        arguments.statement,
        arguments.likelihood,
        arguments.status,
        arguments.reasoning,
        with_verdicts(call.caller.scope, arguments.evidence),
        arguments.number,
    )
    others = [_line(item) for item in findings.list_hypotheses(call.caller.scope) if item.number != recorded.number]
    return Reply(RecordHypothesisResult(recorded=recorded, others=others), "\n".join([_line(recorded), *others]))


async def list_hypotheses(call: Call, arguments: Arguments) -> Reply:
    board = findings.list_hypotheses(call.caller.scope)
    lines = []
    for item in board:
        lines.append(_line(item))
        lines += [
            f"    {text}"
            for text in [item.reasoning, *(f"{evidence.source}: {evidence.note}" for evidence in item.evidence)]
            if text
        ]
    return Reply(Board(hypotheses=board), "\n".join(lines) or "No hypotheses yet.")


async def submit_finding(call: Call, arguments: SubmitFindingArguments) -> Reply:
    evidence = with_verdicts(call.caller.scope, arguments.evidence)
    finding = findings.submit_finding(
        call.caller.scope, arguments.verdict, arguments.statement, arguments.likelihood, evidence
    )
    return Reply(finding, f"Submitted: {finding.verdict}. The investigation is over.")


def _line(item: Hypothesis) -> str:
    return (
        f"{item.number}. [{item.status}, {item.likelihood:.2f}, {len(item.evidence)} pieces of evidence] "
        f"{item.statement}"
    )


def declarations() -> Mapping[str, ToolDeclaration]:
    """The tools of this module."""
    tools = [
        ToolDeclaration(
            "record_hypothesis",
            "Record a hypothesis",
            (
                "Add a hypothesis about what the finetune changed to the notebook, or change one by its number "
                "(likelihood, status, evidence). Kept for the whole investigation."
            ),
            RecordHypothesisArguments,
            RecordHypothesisResult,
            record_hypothesis,
            tool_calls=0,
            read_only=False,
            idempotent=False,
        ),
        ToolDeclaration(
            "list_hypotheses",
            "List hypotheses",
            "All hypotheses recorded so far, with likelihood, status, reasoning and evidence.",
            Arguments,
            Board,
            list_hypotheses,
            tool_calls=0,
        ),
        ToolDeclaration(
            "submit_finding",
            "Submit the finding",
            (
                "Give the final statement of the investigation: what the finetune changed, or that there is no "
                "meaningful difference. It is graded and ends the investigation, so call it once, last, and always, "
                "also when the budget has run out."
            ),
            SubmitFindingArguments,
            Finding,
            submit_finding,
            tool_calls=0,
            read_only=False,
            idempotent=False,
        ),
    ]
    return {tool.name: tool for tool in tools}
