"""Drill-down over finished perplexity differencing, from its stored table. Torch-free."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from methods.perplexity_difference.rows import CompletionRow

if TYPE_CHECKING:
    from methods.runs import RunRecord


class CompletionsParams(BaseModel):
    """Which completions to list."""

    model_config = ConfigDict(extra="forbid")

    writer: Literal["finetuned", "base"] = Field("finetuned", description="The model that wrote them.")
    order: Literal["difference", "as_sampled"] = Field("difference", description="`difference`: least expected by the other model first.")
    contains: str = Field("", max_length=200, description="Only completions containing this text, in any case.")
    offset: int = Field(0, ge=0)
    limit: int = Field(10, ge=1, le=100)
    max_characters: int = Field(400, ge=20, le=10_000, description="Completions are cut to this length.")


class CompletionsView(BaseModel):
    """A page of completions."""

    completions_are_untrusted: Literal[True] = True
    rows: list[CompletionRow]
    total: int = Field(description="Completions there are after filtering.")
    next_offset: int | None


def completions(record: RunRecord, params: CompletionsParams) -> CompletionsView:
    """A page of completions, short ones included."""
    rows = [row for row in record.table("completions").to_pylist() if row["writer"] == params.writer]
    rows = [row for row in rows if params.contains.casefold() in row["text"].casefold()]
    if params.order == "difference":
        rows.sort(key=lambda row: -row["difference"])
    page = rows[params.offset : params.offset + params.limit]
    end = params.offset + len(page)
    other = "base" if params.writer == "finetuned" else "finetuned"
    return CompletionsView(
        rows=[
            CompletionRow(
                prefill=row["prefill"],
                completion=row["text"][: params.max_characters],
                difference=row["difference"],
                perplexity_own=math.exp(-row[f"log_prob_{params.writer}"]),
                perplexity_other=math.exp(-row[f"log_prob_{other}"]),
                tokens=row["tokens"],
            )
            for row in page
        ],
        total=len(rows),
        next_offset=end if end < len(rows) else None,
    )
