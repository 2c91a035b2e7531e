"""All tools of the server in their fixed order. Torch-free."""

from __future__ import annotations

from functools import lru_cache

from diffing_mcp.mcp_server import (
    tools_activations,
    tools_calibration,
    tools_dictionaries,
    tools_findings,
    tools_investigations,
    tools_jobs,
    tools_methods,
    tools_models,
    tools_overview,
    tools_pairs,
    tools_runs,
)
from diffing_mcp.mcp_server.declarations import ToolDeclaration


@lru_cache(maxsize=1)
def toolset() -> dict[str, ToolDeclaration]:
    """Every tool by name. The order never changes while the methods are the same, so that clients can cache prompts
    that hold it.
    """
    modules = (
        tools_pairs,
        tools_overview,
        tools_methods,
        tools_runs,
        tools_models,
        tools_findings,
        tools_activations,
        tools_dictionaries,
        tools_calibration,
        tools_investigations,
        tools_jobs,
    )
    tools: dict[str, ToolDeclaration] = {}
    for module in modules:
        for name, tool in module.declarations().items():
            if name in tools:
                raise ValueError(f"two tools are called {name!r}")
            tools[name] = tool
    return tools
