"""The tool that leads to all other tools: it lists them, describes and switches one on, and calls it for hosts that
never list again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, model_validator

from diffing_mcp.core.errors import UnknownName
from diffing_mcp.core.text import clip, first_sentence
from diffing_mcp.mcp_server.call import Call
from diffing_mcp.mcp_server.declarations import Arguments, JsonObject, Reply, ToolDeclaration
from diffing_mcp.methods.registry import canonical_name

MORE_TOOLS = "more_tools"
LINE = 110
"""Characters of a tool's line in the list of all."""


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
    described = ToolDescription(name=tool.name, description=tool.description, input_schema=tool.input_schema)
    text = (
        f"{tool.name}: {tool.description}\n"
        f"Input schema: {json.dumps(tool.input_schema, separators=(',', ':'), ensure_ascii=False)}"
    )
    step = f"Call {tool.name}; if your list does not show it, call {MORE_TOOLS} with `tool` and `arguments`."
    return Reply(MoreToolsResult(tool=described), text, next_step=step)


def _all(call: Call) -> Reply:
    usable, listed = call.offer.usable(call.caller), call.offer.listed(call.caller)
    rows, lines = [], []
    for toolset, names in call.offer.toolsets.items():
        inside = [usable[name] for name in names if name in usable]
        if toolset == "default" or not inside:
            continue
        lines.append(f"{toolset}:")
        for tool in inside:
            rows.append(
                ToolRow(
                    name=tool.name,
                    toolset=toolset,
                    does=clip(first_sentence(tool.description), LINE)[0],
                    listed=tool.name in listed,
                )
            )
            lines.append(f"  {tool.name}: {rows[-1].does}")
    return Reply(MoreToolsResult(tools=rows), "\n".join(lines), next_step=f"{MORE_TOOLS}(tool=NAME) shows its schema.")


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
