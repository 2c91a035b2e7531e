"""Drill-down over finished weight amplification, from its stored table. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from methods.text_pages import TextPageParams, TextPageView, page_of_texts
from methods.weight_amplification.rows import Answer

if TYPE_CHECKING:
    from methods.runs import RunRecord


class AnswersParams(TextPageParams):
    """Which answers."""

    limit: int = Field(5, ge=1, le=100)
    weight: float | None = Field(None, description="Only this weight of the run (0.01 near).")


class AnswersView(TextPageView):
    """A page of answers."""

    rows: list[Answer]


def answers(record: RunRecord, params: AnswersParams) -> AnswersView:
    """A page of answers: amplified beside finetuned and base."""
    rows = [row for row in record.table("answers").to_pylist() if params.weight is None or abs(row["weight"] - params.weight) <= 0.01]
    page = page_of_texts(rows, params, searched=("prompt", "amplified"), cut=("amplified", "finetuned", "base"))
    return AnswersView(rows=[Answer(**row) for row in page.rows], total=page.total, next_offset=page.next_offset)
