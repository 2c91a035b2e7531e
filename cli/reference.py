"""`python -m diffing_mcp.cli.reference` writes docs/methods.md and docs/tools.md from the declarations, and
docs/python-reference.md from docstrings; `--check` says whether they are current.
"""

from __future__ import annotations

import argparse
import re
import sys

from pydantic import BaseModel

from diffing_mcp.api.type_words import type_text
from diffing_mcp.cli.python_reference import python_reference
from diffing_mcp.core.paths import IMPORT_FOLDER

DOCS = IMPORT_FOLDER / "docs"
PAGE = DOCS / "methods.md"
TOOLS_PAGE = DOCS / "tools.md"
PYTHON_PAGE = DOCS / "python-reference.md"

HEAD = """# Methods

<!-- Written by `make reference` from the declarations in methods/; edit those. -->

Every method is a command (`diffing run METHOD --pair PAIR --set name=value`), a tool of the MCP server with the same
parameters, and a page of the panel. Differences are finetuned minus base; log-probabilities and divergences are in
nats. A layer is a relative depth in [0, 1] or an absolute index. Every result begins with `stands_out` (did the method
see more than noise or a null finetune shows?) and `headline` (the outcome in a sentence). *Cite* names where a method
comes from; those without such a line were made here, so cite this software alone.
"""

TOOLS_HEAD = """# Tools

<!-- Written by `make reference` from the declarations in mcp_server/; edit those. -->

The tools of the MCP server besides the methods, each of which is a tool as well ([Methods](methods.md)). Clients list a
default set of them and find the others with `more_tools`; every tool can be called by its name. An answer is one short
text, with whatever the models wrote between marks; it names the run (`view_run`), the job of work that goes on
(`get_job`), the budget and the next step. A program that sends `_meta: {"diffing/structured": true}` with a call gets
an envelope besides: `status`, the `result` described here, `run_id`, `job`, `budget` and `next_step`. A *price* is what
a call takes from an investigation's model interactions. Operators' tools are not offered to investigations.
"""


def reference() -> str:
    """The page: one section a method with its parameters, its result, its views and its figures."""
    from diffing_mcp.methods.registry import all_methods

    sections = [HEAD]
    for name, method in all_methods().items():
        lines = [f"## {method.title}", f"`{name}` (version {method.version}, takes {method.cost})", method.description]
        lines += [f"Cite: {'; '.join(map(_linked, method.papers))}."] if method.papers else []
        lines += ["### Parameters", table(method.Params, defaults=True)]
        lines += ["### Result", table(method.Result, defaults=False)]
        if method.views:
            lines.append("### Views")
            lines.append("Questions to a finished run: `diffing runs show RUN --view NAME`, or the tool `view_run`.")
            for view in method.views.values():
                lines.append(f"**{view.name}**: {view.description}")
                if view.Params.model_fields:
                    lines.append(table(view.Params, defaults=True))
        if method.figures:
            lines.append("### Figures in the panel")
            lines.append("\n".join(f"- {figure.title}" for figure in method.figures))
        sections.append("\n\n".join(lines))
    return "\n\n".join(section.strip() for section in sections) + "\n"


def tools_reference() -> str:
    """The page of the tools that are not methods: one section a tool with its arguments and its result."""
    from diffing_mcp.mcp_server.toolset import toolset
    from diffing_mcp.methods.registry import all_methods

    sections = [TOOLS_HEAD]
    for name, tool in toolset().items():
        if name in all_methods():
            continue
        notes = [f"price: {tool.price}"] if tool.price else []
        notes += ["for operators"] if tool.operator_only else []
        lines = [
            f"## {tool.title}",
            f"`{name}`" + (f" ({'; '.join(notes)})" if notes else ""),
            " ".join(tool.description.split()),
        ]
        if tool.Arguments.model_fields:
            lines += ["### Arguments", table(tool.Arguments, defaults=True)]
        lines += ["### Result", table(tool.Result, defaults=False)]
        sections.append("\n\n".join(lines))
    return "\n\n".join(section.strip() for section in sections) + "\n"


def table(model: type[BaseModel], defaults: bool) -> str:
    """A Markdown table of a model's fields, from its JSON schema."""
    schema = model.model_json_schema(mode="validation" if defaults else "serialization")
    definitions = schema.get("$defs", {})
    head = ["name", "type", "default", "meaning"] if defaults else ["name", "type", "meaning"]
    rows = [head, ["---"] * len(head)]
    for name, field in schema.get("properties", {}).items():
        row = [f"`{name}`", type_text(field, definitions)]
        if defaults:
            row.append("required" if name in schema.get("required", []) else f"`{field.get('default')}`")
        rows.append([*row, field.get("description", "")])
    return "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows)


def _linked(paper: str) -> str:
    """A paper with its arXiv number as a link."""
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", paper)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def main() -> None:
    """Write the pages, or with --check compare."""
    parser = argparse.ArgumentParser(prog="python -m diffing_mcp.cli.reference", description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit with 1 when a page is not current; write nothing")
    check = parser.parse_args().check
    pages = {PAGE: reference(), TOOLS_PAGE: tools_reference(), PYTHON_PAGE: python_reference()}
    for page, made in pages.items():
        if check:
            if not page.exists() or page.read_text(encoding="utf-8") != made:
                sys.exit(f"docs/{page.name} is not current; run: make reference")
        else:
            page.write_text(made, encoding="utf-8")
            print(page)


if __name__ == "__main__":
    main()
