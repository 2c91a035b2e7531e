"""Drill-down over finished contrastive decoding, from its stored table. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from methods.contrastive_decoding.rows import AmplifiedText

if TYPE_CHECKING:
    from methods.runs import RunRecord


class TextsParams(BaseModel):
    """Which texts."""

    model_config = ConfigDict(extra="forbid")

    alpha: float | None = Field(None, description="Only this alpha of the run; 0 is the plain finetuned model, -1 the base.")
    order: Literal["difference", "as_written"] = Field("difference", description="`difference`: what the base expects least first.")
    contains: str = Field("", max_length=200, description="Only where prompt or text contains this, in any case.")
    offset: int = Field(0, ge=0)
    limit: int = Field(10, ge=1, le=100)
    max_characters: int = Field(400, ge=20, le=10_000, description="Texts are cut to this length.")


class TextsView(BaseModel):
    """A page of texts."""

    texts_are_untrusted: Literal[True] = True
    alphas: list[float] = Field(description="Alphas of the run.")
    rows: list[AmplifiedText]
    total: int
    next_offset: int | None


def texts(record: RunRecord, params: TextsParams) -> TextsView:
    """A page of texts at every alpha, controls included."""
    wanted = params.contains.casefold()
    table = record.table("texts").to_pylist()
    rows = [
        row
        for row in table
        if (params.alpha is None or abs(row["alpha"] - params.alpha) <= 0.01)
        and (wanted in row["prompt"].casefold() or wanted in row["text"].casefold())
    ]
    if params.order == "difference":
        rows.sort(key=lambda row: -row["difference"])
    end = min(len(rows), params.offset + params.limit)
    page = [
        AmplifiedText(alpha=row["alpha"], prompt=row["prompt"], text=row["text"][: params.max_characters], difference=row["difference"])
        for row in rows[params.offset : end]
    ]
    return TextsView(alphas=sorted({row["alpha"] for row in table}), rows=page, total=len(rows), next_offset=end if end < len(rows) else None)
