"""Views and figures of a finished run, from its stored tables. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.methods.continuation_mining.schema import ContinuationRow, NgramRow
from diffing_mcp.methods.contract import Figure, View
from diffing_mcp.methods.texts.pages import page_of

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord

_SHOWN = 20
"""Phrases in the figure."""


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
    page, next_offset = page_of(rows, params.offset, params.limit)
    return ContinuationsView(rows=[ContinuationRow(**row) for row in page], total=len(rows), next_offset=next_offset)


def ngrams(record: RunRecord, params: NgramsParams) -> NgramsView:
    """Phrases over-represented in one side's continuations."""
    wanted = params.contains.casefold()
    table = record.table("ngrams" if params.side == "finetuned" else "base_ngrams")
    rows = [row for row in table.to_pylist() if wanted in row["ngram"]]
    page, next_offset = page_of(rows, params.offset, params.limit)
    return NgramsView(rows=[NgramRow(**row) for row in page], total=len(rows), next_offset=next_offset)


def ngram_bars(record: RunRecord) -> dict[str, Any]:
    """Continuations of each model that hold the most surprising phrases."""
    rows = record.table("ngrams").to_pylist()[:_SHOWN][::-1]
    series = [
        {
            "type": "bar",
            "orientation": "h",
            "name": side,
            "y": [row["ngram"] for row in rows],
            "x": [row[side] for row in rows],
        }
        for side in ("base", "finetuned")
    ]
    return {
        "data": series,
        "layout": {"barmode": "group", "xaxis": {"title": {"text": "continuations"}}, "margin": {"l": 160}},
    }


VIEWS = {
    "continuations": View(
        "continuations", "All places with both continuations, filtered by text, paged.", PageParams, continuations
    ),
    "ngrams": View(
        "ngrams", "Phrases over-represented in either model's continuations, filtered, paged.", NgramsParams, ngrams
    ),
}
FIGURES = (Figure("ngrams", "Phrases over-represented in the finetuned model's continuations", ngram_bars),)
