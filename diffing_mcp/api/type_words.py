"""The types of JSON schemas in words."""

from __future__ import annotations

from typing import Any


def type_text(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A JSON schema's type in words, with its range."""
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[-1]
        target = definitions.get(name, {})
        return type_text(target, definitions) if "enum" in target else name
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(type_text(option, definitions) for option in field["anyOf"]))
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    kind = field.get("type", "anything")
    if kind == "array":
        items = field.get("items") or {}
        return f"list of {type_text(items, definitions)}" if items else "list"
    names = {"null": "none", "object": "mapping", "boolean": "yes or no"}
    return names.get(kind, kind) + _range(field)


def _range(field: dict[str, Any]) -> str:
    bounds = {
        "minimum": ">= {}",
        "exclusiveMinimum": "> {}",
        "maximum": "<= {}",
        "exclusiveMaximum": "< {}",
        "maxLength": "at most {} characters",
    }
    said = [text.format(field[bound]) for bound, text in bounds.items() if bound in field]
    return f" ({', '.join(said)})" if said else ""
