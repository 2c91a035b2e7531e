"""Drill-down over finished runs of the oracle, and their figure. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.methods.activation_oracle.schema import Kind, Mode, OracleAnswer

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord


class AnswersParams(BaseModel):
    """Which answers to list."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind | None = Field(None, description="Only answers on these activations.")
    mode: Mode | None = Field(None, description="Only answers on single tokens, segments or whole sequences.")
    contains: str = Field(
        "", max_length=200, description="Only answers, or questions, containing this text, in any case."
    )
    offset: int = Field(0, ge=0)
    limit: int = Field(20, ge=1, le=100)


class AnswersView(BaseModel):
    """A page of answers."""

    answers_are_untrusted: Literal[True] = True
    rows: list[OracleAnswer]
    total: int = Field(description="Answers there are after filtering.")
    next_offset: int | None


def answers(record: RunRecord, params: AnswersParams) -> AnswersView:
    """A page of answers in the order asked."""
    text = params.contains.casefold()
    rows = [
        row
        for row in record.table("answers").to_pylist()
        if params.kind in (None, row["kind"])
        and params.mode in (None, row["mode"])
        and (text in row["answer"].casefold() or text in row["question"].casefold())
    ]
    end = params.offset + params.limit
    page = [OracleAnswer(**row) for row in rows[params.offset : end]]
    return AnswersView(rows=page, total=len(rows), next_offset=end if end < len(rows) else None)


def words(record: RunRecord) -> dict[str, Any]:
    """Words of the answers on changed activations, and how often the compared answers have them."""
    rows = record.result_json()["words"]
    names = [f"{row['word']} ({row['kind']})" for row in rows]
    data = [
        {"type": "bar", "name": name, "x": names, "y": [row[field] for row in rows]}
        for name, field in (("answers", "count"), ("compared", "compared"))
    ]
    return {"data": data, "layout": {"yaxis": {"title": {"text": "answers that contain the word"}}}}
