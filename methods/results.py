"""What every method answers with, and how it reads as text. Torch-free."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field


class MethodResult(BaseModel):
    """What an agent reads: small (at most about 2,000 tokens), complete in itself, honest about nulls. Long data go to
    arrays and tables.
    """

    stands_out: bool = Field(description="Whether the method saw more than what noise or a null finetune shows.")
    headline: str = Field(description="The outcome in one sentence.")

    def as_text(self) -> str:
        """All fields in fewer characters than JSON. Subclasses with lists of rows override this with a table of their
        own.
        """
        return compact_text(self.model_dump(mode="json"))


def compact_text(values: Mapping[str, Any]) -> str:
    """Headline first, then one line a field: numbers in 4 significant digits; lists of objects below their name, one
    line an object, and lists inside of an object below it, further in. Texts inside of an object stand in quotes, so
    that none of them can look like the next field."""
    lines = [str(values["headline"])] if "headline" in values else []
    for name, value in values.items():
        if name != "headline" and value is not None:
            lines += _field(name, value, "")
    return "\n".join(lines)


def _field(name: str, value: Any, indent: str) -> list[str]:
    if _holds_objects(value):
        return [f"{indent}{name}:", *(line for item in value for line in _object(item, indent + "  "))]
    if isinstance(value, Mapping) and any(map(_holds_objects, value.values())):
        return [f"{indent}{name}:", *_object(value, indent + "  ")]
    return [f"{indent}{name}: {_short(value)}"]


def _object(value: Any, indent: str) -> list[str]:
    if not isinstance(value, Mapping):
        return [indent + _short(value, inner=True)]
    filled = {name: item for name, item in value.items() if item not in (None, [], {})}
    nested = {name: item for name, item in filled.items() if _holds_objects(item)}
    first = indent + " ".join(
        f"{name}={_short(item, inner=True)}" for name, item in filled.items() if name not in nested
    )
    return [first, *(line for name, item in nested.items() for line in _field(name, item, indent + "  "))]


def _holds_objects(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, Mapping) for item in value)


_WORD = re.compile(r'[^\s",=]+')


def _short(value: Any, inner: bool = False) -> str:
    """A value in one line; `inner`: inside of an object or list, where a text needs quotes unless it is a
    single word.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        plain = _WORD.fullmatch(value) if inner else value and value.strip() == value and "\n" not in value
        return value if plain else json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return (
            " ".join(f"{key}={_short(item, inner=True)}" for key, item in value.items() if item is not None) or "none"
        )
    if isinstance(value, list):
        return ", ".join(_short(item, inner=True) for item in value) or "none"
    return str(value)
