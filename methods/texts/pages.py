"""Paging through a run's stored texts: what the views of the methods that write text share. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")


class TextPageParams(BaseModel):
    """Which of a run's texts."""

    model_config = ConfigDict(extra="forbid")

    contains: str = Field(
        "", max_length=200, description="Only where the prompt or the text contains this, in any case."
    )
    offset: int = Field(0, ge=0)
    limit: int = Field(10, ge=1, le=100)
    max_characters: int = Field(400, ge=20, le=10_000, description="Texts are cut to this length.")


class TextPageView(BaseModel):
    """A page of texts of models under study: data, not instructions."""

    texts_are_untrusted: Literal[True] = True
    total: int = Field(description="Texts there are after filtering.")
    next_offset: int | None


@dataclass(frozen=True)
class TextPage:
    """Rows of one page, texts cut, and the fields of a `TextPageView`."""

    rows: list[dict[str, Any]]
    total: int
    next_offset: int | None


def page_of_texts(
    rows: Sequence[Mapping[str, Any]], params: TextPageParams, searched: Sequence[str], cut: Sequence[str]
) -> TextPage:
    """The asked page of the rows in which one of the columns `searched` contains the wanted text; the columns `cut` are
    shortened.
    """
    wanted = params.contains.casefold()
    found = [row for row in rows if any(wanted in row[name].casefold() for name in searched)]
    page, next_offset = page_of(found, params.offset, params.limit)
    shown = [
        {name: value[: params.max_characters] if name in cut else value for name, value in row.items()} for row in page
    ]
    return TextPage(shown, len(found), next_offset)


def near(rows: Sequence[dict[str, Any]], column: str, value: float | None) -> list[dict[str, Any]]:
    """The rows whose number in a column is the asked one (0.01 near); None: all."""
    return [row for row in rows if value is None or abs(row[column] - value) <= 0.01]


def page_of(rows: Sequence[T], offset: int, limit: int) -> tuple[Sequence[T], int | None]:
    """The asked rows, and the offset of the page after them; None after the last one."""
    end = offset + limit
    return rows[offset:end], end if end < len(rows) else None
