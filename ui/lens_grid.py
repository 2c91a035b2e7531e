"""Token lists of layers and positions as tables of position x layer, the form in which a lens is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from diffing_mcp.ui.addresses import link
from diffing_mcp.ui.html import details, div, element, join, number, section, table
from diffing_mcp.ui.values import is_token, render_value, tokens_html


def is_grid(value: Any) -> bool:
    """Whether a value is a list of objects that each have a layer, a position and a list of tokens."""
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) and _lists(row) for row in value)


def _lists(row: Mapping[str, Any]) -> list[str]:
    """Names of the token lists of a row that has a place; none of others."""
    if not {"layer", "position"} <= set(row):
        return []
    return [name for name, value in row.items() if isinstance(value, list) and all(map(is_token, value))]


def grid_html(rows: Sequence[Mapping[str, Any]], pair: str, run: str, note: str = "") -> Markup:
    """A table for each token list (the first one open), and all numbers folded below."""
    lists = [each for each in _lists(rows[0]) if any(row.get(each) for row in rows)]
    tables = [
        details(each.replace("_", " ").capitalize(), _table(rows, each, pair, run), opened=place == 0)
        for place, each in enumerate(lists)
    ]
    others = [{key: value for key, value in row.items() if key not in lists} for row in rows]
    numbers = details("Numbers of every layer and position", render_value(others))
    return section("By position and layer", *tables, numbers, note=note)


def _table(rows: Sequence[Mapping[str, Any]], name: str, pair: str, run: str) -> Markup:
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    positions = list(dict.fromkeys(str(row["position"]) for row in rows))
    by_place = {(str(row["position"]), row["layer"]): row for row in rows}
    lines = []
    for position in positions:
        found = (by_place.get((position, layer)) for layer in layers)
        lines.append([element("b", position), *(_cell(row, name, pair, run) if row else "–" for row in found)])
    return table(["position", *(f"layer {layer}" for layer in layers)], lines)


def _cell(row: Mapping[str, Any], name: str, pair: str, run: str) -> Markup:
    told = [
        f"{short} {number(row[field])}"
        for field, short in (("relative_norm", "norm"), ("stability", "stability"))
        if isinstance(row.get(field), int | float)
    ]
    steer = [link("steer", "steer", pair=pair, vector=f"{run}/{row['vector']}")] if row.get("vector") else []
    return join([tokens_html(row[name]) if row[name] else "–", div(join([*told, *steer], " · "), classes="d-remark")])
