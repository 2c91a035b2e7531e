"""Tools for operators that open and close investigations, so that an evaluation can run on another machine than the
server. Ground truth and grades stay with whoever evaluates.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.call import Call
from diffing_mcp.mcp_server.declarations import Arguments, PairArguments, Reply, ToolDeclaration, tool_names
from diffing_mcp.mcp_server.investigations import ClosedInvestigation, NewInvestigation
from diffing_mcp.mcp_server.jobs import LIVE


class OpenInvestigationArguments(PairArguments):
    """Arguments of open_investigation."""

    tools: str = Field(
        "method",
        max_length=4000,
        description="`blackbox` (model queries only), `method` (everything), or names of tools, comma-separated.",
    )
    interactions: int = Field(50, ge=0, le=investigations.LARGEST_BUDGET, description="Budget of model interactions.")
    tool_calls: int = Field(
        200, ge=0, le=investigations.LARGEST_BUDGET, description="Budget of tool calls; free tools do not count."
    )
    methods_pair: str | None = Field(
        None,
        max_length=1000,
        description="A placebo: the methods look at this pair, and the questions go to `pair`.",
    )
    note: str = Field("", max_length=1000, description="The agent never sees it.")


class CloseInvestigationArguments(Arguments):
    """Arguments of close_investigation."""

    investigation: str = Field(min_length=1, max_length=100, description="Its id or label.")


async def open_investigation(call: Call, arguments: OpenInvestigationArguments) -> Reply:
    opened = investigations.create(
        arguments.pair,
        arguments.tools,
        arguments.interactions,
        arguments.tool_calls,
        arguments.note,
        known_tools=tool_names(call.offer.tools),
        methods_pair=arguments.methods_pair,
    )
    text = f"Investigation {opened.id}, shown to the agent as {opened.label}. Its bearer token, shown this once:"
    return Reply(opened, f"{text}\n{opened.token}")


async def close_investigation(call: Call, arguments: CloseInvestigationArguments) -> Reply:
    closed = investigations.close(arguments.investigation)
    for job in call.context.jobs.list(closed.id):  # nobody can come back for them
        if job.state in LIVE:
            call.context.jobs.cancel(job)
    verdict = closed.finding.verdict if closed.finding else "no finding was submitted"
    return Reply(closed, f"{closed.id} is closed: {verdict}; {closed.budget.as_text()}.")


def declarations() -> Mapping[str, ToolDeclaration]:
    """The tools of this module."""
    tools = [
        ToolDeclaration(
            "open_investigation",
            "Open an investigation",
            (
                "Give an agent one pair under an opaque label, a set of tools and two budgets. Returns the bearer "
                "token it connects with, shown this once."
            ),
            OpenInvestigationArguments,
            NewInvestigation,
            open_investigation,
            tool_calls=0,
            operator_only=True,
            lasting=True,
            idempotent=False,
        ),
        ToolDeclaration(
            "close_investigation",
            "Close an investigation",
            (
                "End an investigation: its token is refused from now on. Returns the finding, the budgets and the runs "
                "it saw."
            ),
            CloseInvestigationArguments,
            ClosedInvestigation,
            close_investigation,
            tool_calls=0,
            operator_only=True,
            lasting=True,
        ),
    ]
    return {tool.name: tool for tool in tools}
