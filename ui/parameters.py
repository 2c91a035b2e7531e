"""Parameters of methods and views as a form needs them, from their JSON schemas; without Gradio."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any


def fields_of(schema: Mapping[str, Any], skip: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """JSON schema of each property, with references and `X or null` replaced by what they stand for."""
    definitions = schema.get("$defs", {})
    return {
        name: _resolved(field, definitions) for name, field in schema.get("properties", {}).items() if name not in skip
    }


def _resolved(field: dict[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    if "anyOf" in field:
        kinds = [kind for kind in field["anyOf"] if kind.get("type") != "null"]
        if len(kinds) == 1:
            rest = {name: value for name, value in field.items() if name != "anyOf"}
            return {**_resolved(kinds[0], definitions), **rest, "optional": True}
    if reference := field.get("$ref"):
        return {**definitions.get(reference.rsplit("/", 1)[-1], {}), **field}
    return field


def entered(
    fields: Iterable[str], values: Iterable[Any], before: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """What was typed into a form, by parameter. Empty inputs are left out; whoever validates the rest takes lists and
    objects as JSON text.

    Args:
        before: what stood in the form at first, for inputs that were never unfolded: they arrive as None.
    """
    given = {name: before.get(name) if value is None else value for name, value in zip(fields, values, strict=True)}
    return {name: value for name, value in given.items() if value is not None and value != ""}


def typed(field: Mapping[str, Any], text: str) -> Any:
    """A value that stands in an address, as the input of that parameter takes it; the default for what cannot be."""
    try:
        if field.get("type") == "integer":
            return int(text)
        if field.get("type") == "number":
            return float(text)
    except ValueError:
        return field.get("default")
    if field.get("type") == "boolean":
        return text.lower() == "true"
    return text
