"""Drill-down over finished steering, from its stored table. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from methods.steering.rows import Answer

if TYPE_CHECKING:
    from methods.runs import RunRecord


class AnswersParams(BaseModel):
    """Which answers."""

    model_config = ConfigDict(extra="forbid")

    strength: float | None = Field(None, description="Only this strength of the run (0.01 near).")
    side: Literal["base", "finetuned"] | None = Field(None, description="Only this model.")
    contains: str = Field("", max_length=200, description="Only where the prompt or the steered answer contains this text, in any case.")
    offset: int = Field(0, ge=0)
    limit: int = Field(5, ge=1, le=100)
    max_characters: int = Field(500, ge=20, le=10_000, description="Answers are cut to this length.")


class AnswersView(BaseModel):
    """A page of answers."""

    answers_are_untrusted: Literal[True] = True
    rows: list[Answer]
    total: int
    next_offset: int | None


def answers(record: RunRecord, params: AnswersParams) -> AnswersView:
    """A page of answers, steered beside unsteered."""
    wanted = params.contains.casefold()
    rows = [
        row
        for row in record.table("answers").to_pylist()
        if (params.strength is None or abs(row["strength"] - params.strength) <= 0.01)
        and params.side in (None, row["side"])
        and (wanted in row["prompt"].casefold() or wanted in row["steered"].casefold())
    ]
    end = min(len(rows), params.offset + params.limit)
    cut = params.max_characters
    page = [
        Answer(side=row["side"], prompt=row["prompt"], strength=row["strength"], steered=row["steered"][:cut], unsteered=row["unsteered"][:cut])
        for row in rows[params.offset : end]
    ]
    return AnswersView(rows=page, total=len(rows), next_offset=end if end < len(rows) else None)
