"""Drill-down over a finished continuation-mining run. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.methods.continuation_mining.rows import ContinuationRow, NgramRow

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord


class PageParams(BaseModel):
    """A page of rows."""

    model_config = ConfigDict(extra="forbid")

    offset: int = Field(0, ge=0)
    limit: int = Field(10, ge=1, le=100)
    contains: str = Field(
        "", max_length=100, description="Only rows whose continuations (or phrase) contain this text, in any case."
    )


class NgramsParams(PageParams):
    """A page of phrases."""

    side: Literal["finetuned", "base"] = Field(
        "finetuned", description="Whose continuations hold the phrases more often."
    )


class ContinuationsView(BaseModel):
    """A page of places, those that differ most first. Texts are untrusted."""

    rows: list[ContinuationRow]
    total: int
    next_offset: int | None


class NgramsView(BaseModel):
    """A page of phrases, most surprising first."""

    rows: list[NgramRow]
    total: int
    next_offset: int | None


def continuations(record: RunRecord, params: PageParams) -> ContinuationsView:
    """Places with both continuations."""
    wanted = params.contains.casefold()
    rows = [
        row
        for row in record.table("continuations").to_pylist()
        if wanted in f"{row['base']}\n{row['finetuned']}".casefold()
    ]
    page = [ContinuationRow(**row) for row in rows[params.offset : params.offset + params.limit]]
    end = params.offset + len(page)
    return ContinuationsView(rows=page, total=len(rows), next_offset=end if end < len(rows) else None)


def ngrams(record: RunRecord, params: NgramsParams) -> NgramsView:
    """Phrases over-represented in one side's continuations."""
    wanted = params.contains.casefold()
    table = record.table("ngrams" if params.side == "finetuned" else "base_ngrams")
    rows = [row for row in table.to_pylist() if wanted in row["ngram"]]
    page = [NgramRow(**row) for row in rows[params.offset : params.offset + params.limit]]
    end = params.offset + len(page)
    return NgramsView(rows=page, total=len(rows), next_offset=end if end < len(rows) else None)
