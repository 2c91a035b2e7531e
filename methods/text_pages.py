"""Paging through a run's stored texts: what the views of the methods that write text share. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class TextPageParams(BaseModel):
    """Which of a run's texts."""

    model_config = ConfigDict(extra="forbid")

    contains: str = Field("", max_length=200, description="Only where the prompt or the text contains this, in any case.")
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


def page_of_texts(rows: Sequence[Mapping[str, Any]], params: TextPageParams, searched: Sequence[str], cut: Sequence[str]) -> TextPage:
    """The asked page of the rows in which one of the columns `searched` contains the wanted text; the columns `cut` are shortened."""
    wanted = params.contains.casefold()
    found = [row for row in rows if any(wanted in row[name].casefold() for name in searched)]
    end = min(len(found), params.offset + params.limit)
    shown = [{name: value[: params.max_characters] if name in cut else value for name, value in row.items()} for row in found[params.offset : end]]
    return TextPage(shown, len(found), end if end < len(found) else None)
