"""Drill-down over finished weight amplification, from its stored table. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from methods.weight_amplification.rows import Answer

if TYPE_CHECKING:
    from methods.runs import RunRecord


class AnswersParams(BaseModel):
    """Which answers."""

    model_config = ConfigDict(extra="forbid")

    weight: float | None = Field(None, description="Only this weight of the run (0.01 near).")
    contains: str = Field("", max_length=200, description="Only where the prompt or the amplified answer contains this text, in any case.")
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
    """A page of answers: amplified beside finetuned and base."""
    wanted = params.contains.casefold()
    rows = [
        row
        for row in record.table("answers").to_pylist()
        if (params.weight is None or abs(row["weight"] - params.weight) <= 0.01)
        and (wanted in row["prompt"].casefold() or wanted in row["amplified"].casefold())
    ]
    end = min(len(rows), params.offset + params.limit)
    cut = dict.fromkeys(("amplified", "finetuned", "base"), params.max_characters)
    page = [Answer(**{name: value[: cut[name]] if name in cut else value for name, value in row.items()}) for row in rows[params.offset : end]]
    return AnswersView(rows=page, total=len(rows), next_offset=end if end < len(rows) else None)
