"""One page of a view of a finished run, small enough for an agent's context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from diffing_mcp.mcp_server.declarations import DEFAULT_CHARACTERS
from diffing_mcp.mcp_server.render import cut_at_line
from diffing_mcp.methods.contract import View
from diffing_mcp.methods.results import compact_text

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord


@dataclass(frozen=True)
class Page:
    """What a view says: as JSON, and as untrusted text; where in the whole it stands, and how to go on."""

    values: dict[str, Any]
    text: str
    place: str
    next_step: str | None


def read_page(view: View, record: RunRecord, params: BaseModel, whole: bool) -> Page:
    """Ask a view. Unless the `whole` is wanted, a page that is too long gets fewer rows (where the view has a `limit`)
    and then fewer lines.
    """
    data, asked = view.run(record, params), getattr(params, "limit", None)
    text = _text(data)
    while not whole and len(text) > DEFAULT_CHARACTERS and (rows := _rows(data)) > 1 and hasattr(params, "limit"):
        fitting = min(rows - 1, max(1, rows * DEFAULT_CHARACTERS // len(text)))
        if fitting >= params.limit:
            break  # rows that `limit` does not count
        params = params.model_copy(update={"limit": fitting})
        data = view.run(record, params)
        text = _text(data)
    shown, cut = (text, False) if whole else cut_at_line(text, DEFAULT_CHARACTERS)
    values = data.model_dump(mode="json")
    place, step = _place(values, params, _rows(data))
    if asked != getattr(params, "limit", None):
        shorter = "; a smaller max_characters lets more in" if hasattr(params, "max_characters") else ""
        place += f" (of the {asked} asked for no more fit into an answer{shorter})"
    if cut:
        step = f"Lines were cut; narrow the view down with its parameters: {', '.join(type(params).model_fields)}."
    return Page(values, shown, place, step)


def _text(data: BaseModel) -> str:
    as_text = getattr(data, "as_text", None)
    return as_text() if callable(as_text) else compact_text(data.model_dump(mode="json"))


def _rows(data: BaseModel) -> int:
    """How many rows the page has: the length of `rows`, or of its first list that is not empty."""
    if isinstance(rows := getattr(data, "rows", None), list):
        return len(rows)
    return next((len(value) for _, value in data if isinstance(value, list) and value), 0)


def _place(values: Mapping[str, Any], params: BaseModel, rows: int) -> tuple[str, str | None]:
    """Where the page stands and how to read on, for views that count their rows."""
    total, offset = values.get("total"), getattr(params, "offset", None)
    if cursor := values.get("next_cursor"):
        return f"showing {rows} of {total}", f"cursor={cursor} for more."
    if not isinstance(total, int) or offset is None:
        return "", None
    end = values.get("next_offset") or offset + rows
    place = f"showing {offset + 1}-{offset + rows} of {total}" if rows else f"none of {total}"
    return place, f"offset={end} for more." if rows and end < total else None
