"""What a run rests on, before its numbers: the texts that models wrote, with the telling words marked, and the words
and tokens that it names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from diffing_mcp.core.errors import DiffingError
from diffing_mcp.methods.calibration.schema import standing
from diffing_mcp.methods.contract import DiffingMethod
from diffing_mcp.methods.registry import all_methods
from diffing_mcp.methods.runs.store import RunRecord
from diffing_mcp.methods.texts.words import EvidenceWord
from diffing_mcp.ui.html import chip, details, div, element, highlighted, join, number, section
from diffing_mcp.ui.lens_grid import grid_html, is_grid
from diffing_mcp.ui.values import render_object

_PASSAGES = 8
"""Texts of one field shown at once; the views hold the others."""

_LEADS = ("prefill", "prompt", "before", "context")
"""Fields with what a text goes on from or answers."""

_CLAUSE = 40
"""Characters from which on a text is read as one, not as a word."""


def judged(method: DiffingMethod[Any, Any] | None, stands_out: bool | None, p: float | None = None) -> Markup:
    """Whether a result is more than finetunes that taught nothing show: by its `p` among those that were measured; by
    the method's own fixed level without one. No method: that of a plugin that is gone.
    """
    if stands_out is None:
        return chip(f"{method.no_verdict}, no verdict" if method is not None else "no verdict")
    if p is None:
        return chip("beyond its fixed level", "finetuned") if stands_out else chip("within its fixed level")
    said = f"{standing(stands_out, p).lower()}, p {p:.3f}"
    return chip(said, "finetuned") if stands_out else chip(said)


def evidence_html(record: RunRecord) -> Markup:
    """What a reader judges by: texts with the telling words marked, then words and tokens."""
    values, told = _result(record)
    texts = {name: value for name, value in values.items() if _holds_texts(value)}
    grids = {name: value for name, value in values.items() if is_grid(value)}
    words = {
        name: value for name, value in values.items() if name not in texts and name not in grids and _holds_words(value)
    }
    marked = telling_words(record)
    parts = [
        section(_heading(name), *(passage_html(row, marked) for row in value[:_PASSAGES]), note=told.get(name, ""))
        for name, value in texts.items()
    ]
    if words:
        parts.append(render_object(words, told))
    manifest = record.manifest
    parts += [grid_html(value, manifest.pair_name, record.id, told.get(name, "")) for name, value in grids.items()]
    return join(parts)


def numbers_html(record: RunRecord) -> Markup:
    """The rest of the result, folded."""
    values, told = _result(record)
    rest = {
        name: value
        for name, value in values.items()
        if not _holds_texts(value) and not _holds_words(value) and not is_grid(value)
    }
    return details("Numbers", render_object(rest, told)) if rest else Markup("")


def passage_html(row: Mapping[str, Any], marked: Sequence[str]) -> Markup:
    """One text that a model wrote, with what led to it before and its numbers below."""
    texts = {name: value for name, value in row.items() if isinstance(value, str)}
    lead = texts.pop(next((name for name in _LEADS if name in texts and len(texts) > 1), ""), "")
    body = max(texts, key=lambda name: len(texts[name]))
    others = {name: value for name, value in row.items() if name != body and value not in (lead, None, "", [])}
    said = ", ".join(
        f"{name.replace('_', ' ')} {number(value) if isinstance(value, int | float) else value}"
        for name, value in others.items()
        if isinstance(value, int | float | str) and not isinstance(value, bool)
    )
    return div(
        element(
            "div",
            element("b", lead, "" if texts[body][:1].isspace() else " ") if lead else "",
            highlighted(texts[body], marked),
            classes="d-pre",
        ),
        element("p", said, classes="d-remark") if said else "",
        classes="d-passage",
    )


def telling_words(record: RunRecord, most: int = 12) -> list[str]:
    """The words that the run itself names as evidence, those above its fixed level; none when it cannot be read."""
    try:
        words: list[EvidenceWord] = list(getattr(record.result(), "evidence_words", list)())
    except DiffingError:
        return []
    return [word.word for word in sorted(words, key=lambda word: -word.score) if word.score >= 1][:most]


def _result(record: RunRecord) -> tuple[dict[str, Any], dict[str, str]]:
    """Fields of the result but headline and judgement, and what each means."""
    try:
        values = record.result_json()
    except (OSError, DiffingError):
        return {}, {}
    method = all_methods().get(record.manifest.method)
    told = {name: field.description or "" for name, field in method.Result.model_fields.items()} if method else {}
    return {name: value for name, value in values.items() if name not in ("headline", "stands_out")}, told


def _heading(name: str) -> str:
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def _holds_texts(value: Any) -> bool:
    """Whether a value is a list of objects that each hold a text of at least a clause."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(row, Mapping)
            and any(isinstance(item, str) and len(item) >= _CLAUSE for item in row.values())
            and not any(isinstance(item, list) and item for item in row.values())
            for row in value
        )
    )


def _holds_words(value: Any) -> bool:
    """Whether a value is a list of words, or of objects that hold one (or lists of them)."""
    return (
        isinstance(value, list)
        and bool(value)
        and any(isinstance(row, str) or (isinstance(row, Mapping) and _names_words(row)) for row in value)
    )


def _names_words(row: Mapping[str, Any]) -> bool:
    return any(isinstance(value, str) or (isinstance(value, list) and value) for value in row.values())
