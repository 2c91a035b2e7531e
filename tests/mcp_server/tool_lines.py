"""The schemas of tools as short lines that a reviewer can read in a diff. What the words leave out (descriptions above
all) changes the hash on the line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from diffing_mcp.cli.reference import type_text


def tool_lines(tools: Sequence[dict[str, Any]]) -> str:
    """A line for each tool, argument (`<`) and field of its result (`>`), then one for each type that they name.

    Args:
        tools: as JSON of the protocol: name, title, description, inputSchema, outputSchema, annotations.
    """
    lines: list[str] = []
    types: set[str] = set()
    for tool in tools:
        given, answered = tool["inputSchema"], tool["outputSchema"]
        definitions = answered["$defs"]
        name = next(option["$ref"] for option in answered["properties"]["result"]["anyOf"] if "$ref" in option)
        result = definitions[name := name.rsplit("/", 1)[-1]]
        hints = [hint.removesuffix("Hint") for hint, value in tool["annotations"].items() if value is True]
        frame = [
            {part: tool[part] for part in tool if not part.endswith("Schema")},
            *map(without_parts, (given, answered)),
        ]
        lines.append(f"{tool['name']} {digest(frame)} ({tool['title']}; {', '.join(hints)}) -> {name} {digest(result)}")
        lines += [f"  < {field}" for field in fields_of(given, given.get("$defs", {}))]
        lines += [f"  > {field}" for field in fields_of(result, definitions)]
        named = {**given.get("$defs", {}), **{other: definitions[other] for other in definitions if other != name}}
        named["envelope"] = {"properties": {k: v for k, v in answered["properties"].items() if k != "result"}}
        types |= {f"{other} {digest(schema)}: {contents(schema, named)}" for other, schema in named.items()}
    return "\n".join([*lines, *sorted(types)]) + "\n"


def without_parts(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without what has lines of its own."""
    return {key: value for key, value in schema.items() if key not in ("properties", "$defs")}


def contents(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A type on one line."""
    return ", ".join(fields_of(schema, definitions)) or in_words(schema, definitions)


def fields_of(schema: dict[str, Any], definitions: dict[str, Any]) -> list[str]:
    """`name type = default` of each property, * when required, with a hash of all that its schema says."""
    required = schema.get("required", [])
    return [
        f"{name}{'*' if name in required else ''} {in_words(field, definitions)}"
        + (f" = {json.dumps(field['default'])}" if "default" in field else "")
        + f" {digest(field)}"
        for name, field in schema.get("properties", {}).items()
    ]


def in_words(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    """`type_text`, also for the short form `"type": [kind, "null"]` of arguments."""
    kind = field.get("type")
    if isinstance(kind, list):
        return f"{type_text({**field, 'type': kind[0]}, definitions)} or none"
    return type_text(field, definitions)


def digest(value: Any) -> str:
    """Six characters that change with the value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:6]
