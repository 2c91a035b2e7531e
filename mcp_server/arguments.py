"""What a host sends becomes what a tool declares, where the meaning is unmistakable: nested values as JSON text, one
value for a list, a text for an object of which only a text is needed, null for "leave it out", another case of a word,
too large a wait. Everything else is left to the validation, which explains it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from pydantic import BaseModel

from diffing_mcp.core.text import clip

CUT = ("wait_seconds", "limit", "max_characters", "k")
"""Numbers that only bound an answer: too large a one is cut to its maximum."""


def coerced(model: type[BaseModel], schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a tool as its `model` takes them; `schema` is the JSON schema that hosts are shown."""
    definitions, properties = schema.get("$defs", {}), schema.get("properties", {})
    found = {}
    for name, value in arguments.items():
        field = properties.get(name)
        if field is None:
            if name != "pair":  # nearly all tools take one, so those that need none are given it too
                found[name] = value
        elif value is None:
            declared = model.model_fields.get(name)
            # Null stands for the default, unless it is a value of its own beside another default.
            if declared is None or declared.is_required() or (declared.default is not None and _takes_null(declared)):
                found[name] = value
        else:
            found[name] = _value(value, field, definitions)
            if name in CUT and "maximum" in field and (number := _number(value)) is not None:
                found[name] = min(number, field["maximum"])
    return found


def cuts(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> list[str]:
    """What to say of the numbers that `coerced` cut. A shorter wait shows by itself."""
    properties = schema.get("properties", {})
    return [
        f"{name}={clip(str(number), 12)[0]} was cut to its maximum, {properties[name]['maximum']}."
        for name, value in arguments.items()
        if name in CUT
        and name != "wait_seconds"
        and (number := _number(value)) is not None
        and number > properties.get(name, {}).get("maximum", math.inf)
    ]


def _number(value: Any) -> int | float | None:
    """A number, also one that came as text; None: it is none."""
    if isinstance(value, int | float):
        return value
    with suppress(ValueError, TypeError):
        return int(value) if str(value).strip().lstrip("+-").isdigit() else float(value)
    return None


def _takes_null(declared: Any) -> bool:
    return type(None) in getattr(declared.annotation, "__args__", ())


def _value(value: Any, field: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    """One value by its schema."""
    options = [_resolved(option, definitions) for option in field.get("anyOf", [field])]
    kinds = {kind for option in options for kind in _kinds(option)}
    if isinstance(value, str) and kinds & {"array", "object"} and value[:1] in "[{" and value[-1:] in "]}":
        with suppress(ValueError):
            parsed = json.loads(value)
            # An object where a list of texts is meant is one of the texts.
            value = parsed if isinstance(parsed, list) or "object" in kinds or not _of_texts(options) else value
    if isinstance(value, str):
        words = [word for option in options for word in option.get("enum", []) if isinstance(word, str)]
        meant = [word for word in words if _plain(word) == _plain(value)]
        value = meant[0] if value not in words and len(meant) == 1 else value
    if isinstance(value, str) and kinds == {"object"} and (name := _only_text(options)):
        return {name: value}
    if kinds == {"array"} and not isinstance(value, list):
        value = [value]
    if isinstance(value, list):
        items: Mapping[str, Any] = next((option["items"] for option in options if "items" in option), {})
        inner = _kinds(_resolved(items, definitions))
        if inner == ["array"] and value and not any(isinstance(item, list) for item in value):
            value = [value]  # one conversation where a list of them is meant
        return [_value(item, items, definitions) for item in value]
    if isinstance(value, dict):
        properties: Mapping[str, Any] = next((option["properties"] for option in options if "properties" in option), {})
        return {
            name: _value(item, properties[name], definitions) if name in properties else item
            for name, item in value.items()
        }
    return value


def _only_text(options: Sequence[Mapping[str, Any]]) -> str | None:
    """The one property that an object cannot be without, if it is a text: a text alone means that."""
    for option in options:
        if len(needed := option.get("required", [])) == 1 and _kinds(option["properties"][needed[0]]) == ["string"]:
            return str(needed[0])
    return None


def _of_texts(options: Sequence[Mapping[str, Any]]) -> bool:
    return any(_kinds(option.get("items", {})) == ["string"] for option in options)


def _resolved(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = schema.get("$ref")
    if not isinstance(reference, str):
        return schema
    found: Mapping[str, Any] = definitions.get(reference.rsplit("/", 1)[-1], {})
    return found


def _kinds(schema: Mapping[str, Any]) -> list[str]:
    kind = schema.get("type", "string" if "enum" in schema else [])
    return [kind] if isinstance(kind, str) else list(kind)


def _plain(word: str) -> str:
    return word.strip().lower().replace("-", "_").replace(" ", "_")
