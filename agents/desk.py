"""What an evaluation needs of whoever runs the investigations: open one, and read how it ended.

Agents never import the server; the command line hands in an implementation that writes to the server's store from
another process.
"""

from __future__ import annotations

from typing import Protocol

from pydantic import BaseModel, Field

from diffing_mcp.agents.records import Arm, Budget, Finding


class OpenInvestigation(BaseModel):
    """A fresh investigation. The token goes to the investigator and nowhere else."""

    id: str
    label: str = Field(description="Opaque name of the pair.")
    token: str = Field(repr=False)


class ClosedInvestigation(BaseModel):
    """How an investigation ended."""

    budgets: dict[str, Budget] = Field(default_factory=dict)
    finding: Finding | None = Field(None, description="What was submitted, None when nothing was.")
    run_ids: list[str] = Field(default_factory=list)


class Desk(Protocol):
    """Opens and closes investigations."""

    def open(self, organism: str, arm: Arm, interactions: int, tool_calls: int, note: str) -> OpenInvestigation:
        """A fresh investigation of this pair with the arm's tools and these budgets.

        Raises:
            DiffingError: the pair does not exist, or a budget is out of range.
        """

    def close(self, identifier: str) -> ClosedInvestigation:
        """End it (its token is refused from now on) and return what it left."""
