"""Which tools a caller may call, and which of them it is shown: the chosen sets and what it switched on since."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.settings import settings
from diffing_mcp.mcp_server.auth import Caller
from diffing_mcp.mcp_server.declarations import ToolDeclaration

ALWAYS_LISTED = ("get_job", "more_tools")
"""Without these neither the answer of long work nor any other tool could be reached."""


@dataclass(frozen=True)
class Selection:
    """What the operator who started the server chose to show.

    Args:
        toolsets: names of sets; `default`, `all`, or those of `toolset.TOOLSETS`.
        tools: single tools beside the sets.
        read_only: leave out, and refuse, what trains, stores, deletes or unloads.
    """

    toolsets: tuple[str, ...] = ("default",)
    tools: tuple[str, ...] = ()
    read_only: bool = False

    @classmethod
    def from_settings(
        cls, toolsets: str | None = None, tools: str | None = None, read_only: bool | None = None
    ) -> Selection:
        """Names separated by commas; None: as the settings say."""
        chosen = settings()
        return cls(
            _names(chosen.toolsets if toolsets is None else toolsets),
            _names(chosen.tools if tools is None else tools),
            chosen.read_only if read_only is None else read_only,
        )


class Offer:
    """The tools of one server.

    Args:
        tools: all tools by name, in the order in which they are listed.
        toolsets: names of the tools in each set.
        selection: what is shown at first.

    Raises:
        InvalidInput: the selection names a set or a tool that does not exist.
    """

    def __init__(
        self,
        tools: Mapping[str, ToolDeclaration],
        toolsets: Mapping[str, Sequence[str]],
        selection: Selection = Selection(),
    ) -> None:
        _check("toolsets", selection.toolsets, [*toolsets, "all"])
        _check("tools", selection.tools, list(tools))
        self.tools = tools
        self.toolsets = toolsets
        self.read_only = selection.read_only
        in_sets = {name for chosen in selection.toolsets if chosen != "all" for name in toolsets[chosen]}
        self._shown = frozenset(tools if "all" in selection.toolsets else {*in_sets, *selection.tools, *ALWAYS_LISTED})
        self._switched_on: dict[str, set[str]] = defaultdict(set)

    @cached_property
    def words(self) -> frozenset[str]:
        """All words of what the tools say of themselves, which everybody may read."""
        said = [
            json.dumps([tool.name, tool.title, tool.description, tool.input_schema]) for tool in self.tools.values()
        ]
        return frozenset(re.findall(r"[a-z0-9]+", " ".join(said).lower()))

    def usable(self, caller: Caller) -> dict[str, ToolDeclaration]:
        """The tools that the caller may call, listed or not."""
        return {
            name: tool
            for name, tool in self.tools.items()
            if caller.may_use(name, tool.operator_only) and not (tool.lasting and (self.read_only or caller.read_only))
        }

    def missing(self, caller: Caller) -> list[str]:
        """Names of the tools that there are and that the caller may not call: nothing tells it to."""
        usable = self.usable(caller)
        return [name for name in self.tools if name not in usable]

    def listed(self, caller: Caller) -> dict[str, ToolDeclaration]:
        """The tools that the caller is shown: also those that its investigation was given by name."""
        named = caller.investigation.named_tools if caller.investigation else ()
        shown = self._shown.union(self._switched_on.get(caller.scope, ()), named)
        return {name: tool for name, tool in self.usable(caller).items() if name in shown}

    def switch_on(self, caller: Caller, name: str) -> bool:
        """Show a tool to this caller from now on; whether that changes its list."""
        if name in self.listed(caller):
            return False
        self._switched_on[caller.scope].add(name)
        return True


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for part in text.split(",") if (name := part.strip()))


def _check(what: str, named: Sequence[str], allowed: Sequence[str]) -> None:
    if wrong := [name for name in named if name not in allowed]:
        raise InvalidInput(f"no such {what}: {', '.join(wrong)}. There are: {', '.join(allowed)}.", names_tools=True)
