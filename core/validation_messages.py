"""What is wrong with a user's values, in words: the one wording of pydantic's complaints, for tools, views, commands
and the panel.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any

from pydantic import ValidationError

MOST = 5
_LONGEST_VALUE = 40


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
    said = problem["msg"].removeprefix("Value error, ").rstrip(".")
    if problem["type"] in ("value_error", "too_short", "too_long"):  # these say what was given where that matters
        return f"`{where}`: {said}" if where else said
    value = repr(problem["input"])
    return f"`{where}`: {said}" + (f", not {value}" if len(value) <= _LONGEST_VALUE else "")


def _inside(place: tuple[Any, ...], outer: tuple[Any, ...]) -> bool:
    return len(place) > len(outer) and place[: len(outer)] == outer
