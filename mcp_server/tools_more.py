"""The tool that leads to all other tools: it lists them, describes and switches one on, and calls it for hosts that
never list again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from textwrap import shorten
from typing import Any

from pydantic import BaseModel, Field, model_validator

from diffing_mcp.core.errors import UnknownName
from diffing_mcp.core.text import first_sentence
from diffing_mcp.mcp_server.call import Call
from diffing_mcp.mcp_server.declarations import Arguments, JsonObject, Reply, ToolDeclaration
from diffing_mcp.mcp_server.tool_mentions import without_missing
from diffing_mcp.methods.registry import canonical_name

MORE_TOOLS = "more_tools"
LINE = 56
"""Characters of what is said of a tool in the list of all."""
_NAME_WORDS = 5


class MoreToolsArguments(Arguments):
    """Arguments of more_tools."""

    tool: str | None = Field(None, max_length=100, description="Its name.")
    arguments: JsonObject | None = Field(None, description="Call `tool` at once with these (JSON object).")

    @model_validator(mode="after")
    def _arguments_of_a_tool(self) -> MoreToolsArguments:
        if self.arguments is not None and self.tool is None:
            raise ValueError("`arguments` are those of `tool`: name it as well")
        return self


class ToolRow(BaseModel):
    """One tool in a line."""

    name: str
    toolset: str
    does: str
    listed: bool = Field(description="Whether it is in the caller's list of tools.")


class ToolDescription(BaseModel):
    """How one tool is called."""

    name: str
    description: str
    input_schema: dict[str, Any]


class MoreToolsResult(BaseModel):
    """The tools that this caller may call, or one of them in full."""

    tools: list[ToolRow] = []
    tool: ToolDescription | None = None


async def more_tools(call: Call, arguments: MoreToolsArguments) -> Reply:
    if arguments.tool is None:
        return _all(call)
    usable = call.offer.usable(call.caller)
    tool = usable.get(canonical_name(arguments.tool))
    if tool is None:
        raise UnknownName(f"there is no tool {arguments.tool!r} here. Tools: {', '.join(usable)}.")
    call.list_changed = call.offer.switch_on(call.caller, tool.name)
    description = without_missing(tool.description, call.offer.missing(call.caller), keep=1)
    described = ToolDescription(name=tool.name, description=description, input_schema=tool.input_schema)
    text = (
        f"{tool.name}: {description}\n"
        f"Input schema: {json.dumps(tool.input_schema, separators=(',', ':'), ensure_ascii=False)}"
    )
    step = f"Call {tool.name}; if your list does not show it, call {MORE_TOOLS} with `tool` and `arguments`."
    return Reply(MoreToolsResult(tool=described), text, next_step=step)


def _all(call: Call) -> Reply:
    """A line for each tool that the caller's list lacks; of those for operators the names."""
    usable, listed = call.offer.usable(call.caller), call.offer.listed(call.caller)
    rows = [
        ToolRow(name=name, toolset=toolset, does=_purpose(usable[name]), listed=name in listed)
        for toolset, names in call.offer.toolsets.items()
        if toolset != "default"
        for name in names
        if name in usable
    ]
    unlisted = [row for row in rows if not row.listed]
    lines = [f"{row.name}: {row.does}" for row in unlisted if not usable[row.name].operator_only]
    if names := [row.name for row in unlisted if usable[row.name].operator_only]:
        lines.append(f"For operators: {', '.join(names)}")
    return Reply(MoreToolsResult(tools=rows), "\n".join(lines), next_step=f"{MORE_TOOLS}(tool=NAME) shows its schema.")


def _purpose(tool: ToolDeclaration) -> str:
    """What a tool is for, shorter than its first sentence: without the name that some begin with."""
    said = first_sentence(tool.description)
    name, colon, rest = said.partition(": ")
    return shorten(rest if colon and len(name.split()) < _NAME_WORDS else said, LINE, placeholder=" …")


def declarations() -> Mapping[str, ToolDeclaration]:
    """The tool of this module."""
    tool = ToolDeclaration(
        MORE_TOOLS,
        "More tools",
        (
            "Find further tools: single diffing methods (KL, logit lens and patchscope of activation differences, PCA, "
            "steering, weights, SAE, crosscoder), stored runs, pairs, jobs. Without arguments it lists all; `tool` "
            "shows one's schema and adds it to your list; `arguments` besides calls it."
        ),
        MoreToolsArguments,
        MoreToolsResult,
        more_tools,
        tool_calls=0,
    )
    return {tool.name: tool}
