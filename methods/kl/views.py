"""Drill-down questions over a finished run of `kl`. Read stored tables only; torch-free."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.kl.rows import Metric, TextRow, TokenRow

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord


class _Page(BaseModel):
    model_config = ConfigDict(extra="forbid")

    limit: int = Field(10, ge=1, le=100, description="Rows.")
    offset: int = Field(0, ge=0, description="Rows to pass over.")
    contains: str | None = Field(
        None, max_length=200, description="Only rows whose text or moved tokens contain this, whatever the case."
    )


class TokensParams(_Page):
    """Parameters of the view `tokens`."""

    sample: int | None = Field(
        None, ge=0, description="Give every token of this text in order, with its divergence, instead of the top rows."
    )
    metric: Metric = Field("kl_finetuned_base", description="Which divergence orders the top rows.")


class TokenValue(BaseModel):
    """A token of a text and how differently the models continue after it."""

    position: int
    token: str
    kl_finetuned_base: float
    kl_base_finetuned: float
    js: float


class TokensView(BaseModel):
    """Top positions, or all tokens of one text."""

    total: int = Field(description="Rows there are before `limit` and `offset`.")
    rows: list[TokenRow] = []
    text: list[TokenValue] = []


class TextsParams(_Page):
    """Parameters of the view `texts`."""

    metric: Metric = Field("kl_finetuned_base", description="Which divergence orders the texts.")


class TextsView(BaseModel):
    """Texts by mean divergence. Moved tokens are kept for the texts of highest KL(finetuned || base) only; they are
    empty for others.
    """

    total: int
    rows: list[TextRow]


class PositionsParams(BaseModel):
    """Parameters of the view `positions`."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(64, ge=1, le=2048, description="Positions, from 0.")


class PositionRow(BaseModel):
    """Means over all texts at one position."""

    position: int
    tokens: int
    kl_finetuned_base: float
    standard_error: float
    kl_base_finetuned: float
    js: float


class PositionsView(BaseModel):
    """The profile of divergence along texts."""

    rows: list[PositionRow]


def tokens(record: RunRecord, params: TokensParams) -> TokensView:
    """See `KLDivergence.views`."""
    if params.sample is not None:
        return _one_text(record, params)
    rows = [TokenRow.model_validate(_unpack(row)) for row in record.table("top_tokens").to_pylist()]
    rows = [row for row in rows if _matches(params.contains, row.context, row)]
    rows.sort(key=lambda row: -getattr(row, params.metric))
    return TokensView(total=len(rows), rows=rows[params.offset : params.offset + params.limit])


def _one_text(record: RunRecord, params: TokensParams) -> TokensView:
    from pyarrow import compute

    table = record.table("tokens")
    chosen = table.filter(compute.equal(table["sample"], params.sample)).drop_columns(["sample"])
    if chosen.num_rows == 0:
        raise InvalidInput(
            f"Run {record.id} has no text {params.sample}; texts: 0 to {record.manifest.tables['texts'] - 1}."
        )
    values = [TokenValue.model_validate(row) for row in chosen.to_pylist()]
    if params.contains:
        values = [value for value in values if params.contains.lower() in value.token.lower()]
    return TokensView(total=len(values), text=values[params.offset : params.offset + max(params.limit, 100)])


def texts(record: RunRecord, params: TextsParams) -> TextsView:
    """See `KLDivergence.views`."""
    moved = {row["sample"]: _unpack(row) for row in record.table("top_texts").to_pylist()}
    table = record.table("texts")
    order = np.argsort(-table[params.metric].to_numpy(), kind="stable")
    if params.contains:
        wanted = params.contains.lower()
        contents = table["text"].to_pylist()
        order = np.asarray(
            [
                index
                for index in order
                if wanted in contents[index].lower() or (index in moved and _moved(wanted, moved[index]))
            ],
            dtype=int,
        )
    page = table.take(order[params.offset : params.offset + params.limit]).to_pylist()
    rows = [
        TextRow.model_validate(
            {**row, **{side: moved.get(row["sample"], {}).get(side, []) for side in ("rose", "fell")}}
        )
        for row in page
    ]
    return TextsView(total=len(order), rows=rows)


def positions(record: RunRecord, params: PositionsParams) -> PositionsView:
    """See `KLDivergence.views`."""
    columns = {
        name: record.array(f"positions.{name}")
        for name in ("count", "kl_finetuned_base", "standard_error", "kl_base_finetuned", "js")
    }
    return PositionsView(
        rows=[
            PositionRow(
                position=index,
                tokens=int(columns["count"][index]),
                **{name: float(array[index]) for name, array in columns.items() if name != "count"},
            )
            for index in range(min(params.limit, len(columns["count"])))
        ]
    )


def _unpack(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "rose": json.loads(row["rose"]), "fell": json.loads(row["fell"])}


def _matches(contains: str | None, text: str, row: TokenRow) -> bool:
    return not contains or contains.lower() in text.lower() or _moved(contains.lower(), row.model_dump())


def _moved(wanted: str, row: dict[str, Any]) -> bool:
    return any(wanted in move["token"].lower() for side in ("rose", "fell") for move in row[side])
