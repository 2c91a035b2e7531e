"""Opening and closing investigations through the operator's tools of the server, on this machine or another."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from diffing_mcp.agents.mcp_session import call_as_operator
from diffing_mcp.agents.records import Budget, RecordedFinding


class OpenInvestigation(BaseModel):
    """A fresh investigation. The token goes to the investigator and nowhere else."""

    id: str
    label: str = Field(description="Opaque name of the pair.")
    token: str = Field(repr=False)


class InvestigationOutcome(BaseModel):
    """How an investigation ended."""

    budgets: dict[str, Budget] = Field(description="Keys `model_interactions` and `tool_calls`.")
    finding: RecordedFinding | None = Field(description="What was submitted, None when nothing was.")
    run_ids: list[str]


async def open_investigation(
    url: str,
    pair: str,
    tools: str,
    interactions: int,
    tool_calls: int,
    note: str,
    methods_pair: str | None = None,
) -> OpenInvestigation:
    """A fresh investigation of this pair with these tools and budgets. `methods_pair`: the pair that the methods look
    at in its place, a placebo.

    Raises:
        ToolFailed: the server does not know the pair, or does not take this caller for an operator.
        NoServer: nothing answers at `url`, or it refuses the operator's token.
    """
    arguments = {
        "pair": pair,
        "tools": tools,
        "interactions": interactions,
        "tool_calls": tool_calls,
        "note": note,
        **({"methods_pair": methods_pair} if methods_pair else {}),
    }
    return OpenInvestigation.model_validate(await call_as_operator(url, "open_investigation", arguments))


async def close_investigation(url: str, identifier: str) -> InvestigationOutcome:
    """End it (its token is refused from now on) and return what it left.

    Raises:
        ToolFailed: the server does not know the investigation.
        NoServer: see `open_investigation`.
    """
    left = await call_as_operator(url, "close_investigation", {"investigation": identifier})
    finding = left.get("finding")
    return InvestigationOutcome(
        budgets={
            "model_interactions": _budget(left["budget"], "interactions"),
            "tool_calls": _budget(left["budget"], "tool_calls"),
        },
        finding=RecordedFinding.model_validate({**finding, "source": "submit_finding"}) if finding else None,
        run_ids=left["run_ids"],
    )


def _budget(state: dict[str, Any], name: str) -> Budget:
    total = state[f"{name}_total"]
    return Budget(limit=total, used=total - state[f"{name}_left"])
