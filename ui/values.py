"""JSON values of any shape as readable HTML: results and views of methods are shown from what they declare, without a
page for each method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from diffing_mcp.ui.html import (
    chip,
    details,
    div,
    element,
    escape,
    join,
    number,
    pairs,
    preformatted,
    table,
    visible_token,
)

MAX_ROWS = 200
"""Rows of one list shown at once; a page of its own shows the others."""

_LONG_TEXT = 160

_EMPTY: tuple[Any, ...] = (None, [], {}, "")

_COLUMNS = {"strong": "against the null"}

_ACRONYMS = {"kl": "KL", "js": "JS", "bos": "BOS"}


def render_object(
    values: Mapping[str, Any], descriptions: Mapping[str, str] | None = None, skip: Sequence[str] = ()
) -> Markup:
    """An object: short fields as a grid, distributions with equal fields as one table, lists below under their names.

    Args:
        values: the JSON object.
        descriptions: what each field means, shown under the pointer.
        skip: fields to leave out.
    """
    told = descriptions or {}
    shown = {name: value for name, value in values.items() if name not in skip and value not in _EMPTY}
    short = {name: value for name, value in shown.items() if _is_short(value)}
    grids = {
        name: value
        for name, value in shown.items()
        if isinstance(value, Mapping) and all(_is_short(item) for item in value.values())
    }
    parts: list[Markup] = []
    if short:
        parts.append(pairs((_label(name, told), render_value(value)) for name, value in short.items()))
    if grids:
        parts.append(_grids(grids, told))
    for name, value in shown.items():
        if name not in short and name not in grids:
            parts.append(element("h4", _label(name, told)))
            parts.append(render_value(value))
    return join(parts)


def render_value(value: Any) -> Markup:
    """Any JSON value."""
    if value is None:
        return Markup("–")
    if isinstance(value, bool):
        return Markup("yes" if value else "no")
    if isinstance(value, int | float):
        return escape(number(value, 4))
    if isinstance(value, str):
        return preformatted(value) if len(value) > _LONG_TEXT or "\n" in value else escape(value)
    if isinstance(value, Mapping):
        return render_move(value) if is_move(value) else render_object(value)
    if isinstance(value, Sequence):
        return _render_list(value)
    return escape(value)


def is_move(value: Any) -> bool:
    """Whether an object is a token with its probability under both models."""
    return (
        isinstance(value, Mapping)
        and set(value) == {"token", "base", "finetuned"}
        and all(isinstance(value[side], int | float) for side in ("base", "finetuned"))
    )


def render_move(value: Mapping[str, Any]) -> Markup:
    """A token and its two probabilities, the first in the colour of base and the second in that of finetuned."""
    return element(
        "span",
        element("b", visible_token(str(value["token"]))),
        " ",
        element("span", number(value["base"], 2), classes="d-base-text"),
        "→",
        element("span", number(value["finetuned"], 2), classes="d-finetuned-text"),
        classes="d-move",
    )


def _render_list(values: Sequence[Any]) -> Markup:
    cut = div(f"and {len(values) - MAX_ROWS} more", classes="d-note") if len(values) > MAX_ROWS else Markup("")
    shown = list(values[:MAX_ROWS])
    if not shown:
        return Markup("none")
    if all(is_move(item) for item in shown):
        return join([div(*(render_move(item) for item in shown), classes="d-moves"), cut])
    if all(isinstance(item, Mapping) for item in shown):
        return join([_rows(shown), cut])
    if all(isinstance(item, str) for item in shown) and all(len(item) <= 40 for item in shown):
        return join([div(*(chip(visible_token(item)) for item in shown), classes="d-moves"), cut])
    if all(_is_short(item) for item in shown):
        return join([join((render_value(item) for item in shown), ", "), cut])
    return join([element("ol", *(element("li", render_value(item)) for item in shown), classes="d-list"), cut])


def _rows(values: Sequence[Mapping[str, Any]]) -> Markup:
    """Objects as a table: a column a field, in the order in which the fields first come; those that are empty in all
    objects are left out, and lists of objects stand below the row that they belong to, where they have the whole width.
    """
    filled = [
        name
        for name in dict.fromkeys(name for value in values for name in value)
        if any(value.get(name) not in _EMPTY for value in values)
    ]
    below = [name for name in filled if any(_holds_objects(value.get(name)) for value in values)]
    columns = [name for name in filled if name not in below]
    numeric = [place for place, name in enumerate(columns) if all(_is_number(value.get(name)) for value in values)]
    return table(
        [_COLUMNS.get(name, name.replace("_", " ")) for name in columns],
        ([_cell(name, value.get(name)) for name in columns] for value in values),
        numeric,
        below=[join(_below(name, value[name]) for name in below if value.get(name)) for value in values]
        if below
        else (),
    )


def _below(name: str, value: Sequence[Any]) -> Markup:
    return div(
        div(name.replace("_", " "), classes="d-below-name"),
        tokens_html(value) if all(map(is_token, value)) else render_value(value),
        classes="d-below",
    )


def is_token(value: Any) -> bool:
    """Whether an object is a token (or word) with numbers about it."""
    return (
        isinstance(value, Mapping)
        and bool({"token", "word"} & set(value))
        and all(_is_short(item) for item in value.values())
    )


def tokens_html(values: Sequence[Mapping[str, Any]]) -> Markup:
    """Tokens in lines, each with its first number and all of them under the pointer."""
    if is_move(values[0]):
        return render_value(values)
    shown = []
    for value in values[:MAX_ROWS]:
        name = "token" if "token" in value else "word"
        numbers = {
            key: item for key, item in value.items() if isinstance(item, int | float) and not isinstance(item, bool)
        }
        told = ", ".join(f"{key.replace('_', ' ')} {number(item, 4)}" for key, item in numbers.items())
        first = [" ", element("span", number(next(iter(numbers.values())), 3))] if numbers else []
        shown.append(
            element("span", element("b", visible_token(str(value[name]))), *first, classes="d-move", title=told)
        )
    return div(*shown, classes="d-moves")


def _holds_objects(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, Mapping) and not is_move(item) for item in value)


def _cell(name: str, value: Any) -> Markup:
    if name == "strong" and isinstance(value, bool):
        return chip("beyond", "finetuned") if value else chip("within")
    if isinstance(value, str) and name in ("token", "next_token"):
        return element("code", visible_token(value), classes="d-token")
    if isinstance(value, str) and len(value) > 600:
        return details(value[:120] + "…", preformatted(value))
    return render_value(value)


def _grids(values: Mapping[str, Mapping[str, Any]], told: Mapping[str, str]) -> Markup:
    """Objects of short values; those with the same fields are rows of one table."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, value in values.items():
        groups.setdefault(tuple(value), []).append(name)
    parts = []
    for columns, names in groups.items():
        if is_move(values[names[0]]):
            parts.append(pairs((_label(name, told), render_move(values[name])) for name in names))
        else:
            rows = ([_label(name, told), *(render_value(values[name][column]) for column in columns)] for name in names)
            parts.append(
                table(["", *(column.replace("_", " ") for column in columns)], rows, range(1, len(columns) + 1))
            )
    return join(parts)


def _label(name: str, told: Mapping[str, str]) -> Markup:
    words = " ".join(_ACRONYMS.get(word, word) for word in name.split("_"))
    return element("span", words[:1].upper() + words[1:], title=told.get(name))


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _is_short(value: Any) -> bool:
    return (
        value is None
        or isinstance(value, bool | int | float)
        or (isinstance(value, str) and len(value) <= _LONG_TEXT and "\n" not in value)
    )
