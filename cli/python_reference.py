"""The reference page of the Python API, from the docstrings of the names that `import diffing_mcp` promises."""

from __future__ import annotations

import inspect
import re
from functools import cached_property
from typing import Any

import diffing_mcp as dm
from diffing_mcp.methods.registry import all_methods

HEAD = """# Python reference

<!-- Written by `make reference` from the docstrings in diffing_mcp/api/; edit those. -->

Everything in `diffing_mcp.__all__`; [Python](python-api.md) says how it is used. Every method takes a pair, its
parameters by name, and `progress`; [Methods](methods.md) has the parameters and results of each.
"""

NAMED = re.compile(r"^(\w+)(?= ?[(:])")
"""What an entry of a docstring's section begins with, when it is about a name."""


def python_reference() -> str:
    """The page: functions, methods in one table, then classes with their members."""
    names = [name for name in dm.__all__ if name != "__version__"]
    values = {name: getattr(dm, name) for name in names}
    sections = [HEAD, "## Functions"]
    sections += [_function(name, value) for name, value in values.items() if _is_function(name, value)]
    rows = [
        f"| `{name}(pair, ...)` | {method.title} | {', '.join(f'`{view}`' for view in method.views)} |"
        for name, method in all_methods().items()
        if name in values
    ]
    sections.append("\n".join(["## Methods", "", "| function | what it computes | views |", "|---|---|---|", *rows]))
    sections.append("## Classes")
    sections += [_class(name, value) for name, value in values.items() if inspect.isclass(value)]
    return "\n\n".join(section.strip() for section in sections) + "\n"


def _is_function(name: str, value: Any) -> bool:
    return inspect.isfunction(value) and name not in all_methods()


def _function(name: str, function: Any, level: str = "###") -> str:
    parameters = [
        each.replace(annotation=inspect.Parameter.empty)
        for each in inspect.signature(function).parameters.values()
        if each.name != "self"
    ]
    return f"{level} `{name}{inspect.Signature(parameters)}`\n\n{_prose(function)}"


def _class(name: str, value: type[Any]) -> str:
    lines = [f"### `{name}`", "", _prose(value)]
    for member, part in vars(value).items():
        if member.startswith("_"):
            continue
        if inspect.isfunction(part):
            lines += ["", _function(f"{name}.{member}", part, "####")]
        elif isinstance(part, (property, cached_property)):
            summary = (inspect.getdoc(part) or "").partition("\n\n")[0]
            lines += ["", f"- `{name}.{member}`: {' '.join(summary.split())}"]
    return "\n".join(lines)


def _prose(value: Any) -> str:
    """A docstring in Markdown: its sections become lists."""
    sections = re.split(r"^(Args|Returns|Raises):\n", inspect.getdoc(value) or "", flags=re.MULTILINE)
    parts = [sections[0].strip()]
    for title, body in zip(sections[1::2], sections[2::2], strict=True):
        # An entry begins at the section's own indent; what goes on below it is indented further.
        items = re.sub(r"\n {8}", " ", body.split("\n\n")[0])
        entries = [line.strip() for line in items.splitlines() if line.strip()]
        after = body.partition("\n\n")[2].strip()
        words = "Parameters" if title == "Args" else title
        listed = ["- " + NAMED.sub(r"`\1`", entry) for entry in entries]
        parts.append(f"{words}:\n\n" + "\n".join(listed))
        if after:
            parts.append(after)
    return "\n\n".join(parts)
