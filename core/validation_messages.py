"""What is wrong with a user's values, in words: the one wording of pydantic's complaints, for tools, views, commands
and the panel.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from typing import Any

from pydantic import ValidationError

MOST = 5
# pydantic's own words for these speak of Python and of parsing.
_WORDS = {
    "must be a text": ("string_type",),
    "must be a whole number": ("int_type", "int_parsing", "int_from_float"),
    "must be a number": ("float_type", "float_parsing"),
    "must be true or false": ("bool_type", "bool_parsing"),
    "must be a list": ("list_type", "tuple_type"),
    "must be a JSON object": ("dict_type", "model_type", "model_attributes_type"),
}
_SAID = {kind: words for words, kinds in _WORDS.items() for kind in kinds}
_SUBJECT = re.compile(r"^(?:Input|String|Tuple|List|Dictionary) should")
_LONGEST_VALUE = 40
_EMPTY = "must not be empty"


def complaints(error: ValidationError, known: Collection[str] = ()) -> str:
    """One line: each wrong value by its path, with what is allowed and, when it is short, what was given. Ends without
    a full stop.

    Args:
        error: of the model that the values were meant for.
        known: names of its fields; an unknown name gets the closest of them.
    """
    found = error.errors(include_url=False)
    # A list that is too short only because its items were refused is not a complaint of its own.
    real = [
        each
        for each in found
        if not (each["type"] == "too_short" and any(_inside(other["loc"], each["loc"]) for other in found))
    ]
    lines = [_line(each, known) for each in real[:MOST]]
    return "; ".join([*lines, f"{len(real) - MOST} more"] if len(real) > MOST else lines)


def _line(problem: Any, known: Collection[str]) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(where, known, n=1)
        return f"`{where}` is unknown" + (f" (did you mean `{close[0]}`?)" if close else "")
    if problem["type"] == "missing":
        return f"`{where}` is missing"
    said = _said(problem)
    if (
        problem["type"] in ("value_error", "too_short", "too_long") or said == _EMPTY
    ):  # these say what was given where that matters
        return f"`{where}`: {said}" if where else said
    value = repr(problem["input"])
    return f"`{where}`: {said}" + (f", not {value}" if len(value) <= _LONGEST_VALUE else "")


def _said(problem: Any) -> str:
    if problem["type"] in ("string_too_short", "too_short") and problem["ctx"]["min_length"] == 1:
        return _EMPTY
    words = _SAID.get(problem["type"]) or problem["msg"].removeprefix("Value error, ").rstrip(".")
    return _SUBJECT.sub("must", words).replace(" after validation", "")


def _inside(place: tuple[Any, ...], outer: tuple[Any, ...]) -> bool:
    return len(place) > len(outer) and place[: len(outer)] == outer
