"""All tools of the server in their fixed order, and the named sets of them. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

from diffing_mcp.mcp_server import (
    tools_activations,
    tools_calibration,
    tools_dictionaries,
    tools_facts,
    tools_findings,
    tools_investigations,
    tools_jobs,
    tools_methods,
    tools_models,
    tools_more,
    tools_overview,
    tools_pairs,
    tools_runs,
)
from diffing_mcp.mcp_server.declarations import ToolDeclaration

# Each tool is in one set, the one of its module.
TOOLSETS: Mapping[str, Callable[[], Mapping[str, ToolDeclaration]]] = {
    "pairs": tools_pairs.declarations,
    "overview": lambda: {**tools_overview.declarations(), **tools_facts.declarations()},
    "methods": tools_methods.declarations,
    "runs": tools_runs.declarations,
    "questions": tools_models.declarations,
    "hypotheses": tools_findings.declarations,
    "activations": tools_activations.declarations,
    "dictionaries": tools_dictionaries.declarations,
    "calibration": tools_calibration.declarations,
    "investigations": tools_investigations.declarations,
    "jobs": tools_jobs.declarations,
    "more": tools_more.declarations,
}

DEFAULT_TOOLS = (
    "list_pairs",
    "overview",
    "facts",
    "view_run",
    "ask_models",
    "test_hypothesis",
    "sweep_behaviours",
    "complete_slots",
    "record_hypothesis",
    "submit_finding",
    "get_job",
    "more_tools",
)
"""What a client lists when nobody chose anything else: the tools of an investigation from its first look to its
finding. Few enough for hosts that cap the tools of all servers, small enough for an agent's context.
"""


@lru_cache(maxsize=1)
def toolset() -> dict[str, ToolDeclaration]:
    """Every tool by name. The order never changes while the methods are the same, so that clients can cache prompts
    that hold it.
    """
    tools: dict[str, ToolDeclaration] = {}
    for declarations in TOOLSETS.values():
        for name, tool in declarations().items():
            if name in tools:
                raise ValueError(f"two tools are called {name!r}")
            tools[name] = tool
    return tools


@lru_cache(maxsize=1)
def toolsets() -> dict[str, tuple[str, ...]]:
    """Names of the tools in each set, `default` first."""
    named = {name: tuple(declarations()) for name, declarations in TOOLSETS.items()}
    return {"default": tuple(name for name in DEFAULT_TOOLS if name in toolset()), **named}
