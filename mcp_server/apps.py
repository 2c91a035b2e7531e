"""MCP Apps: one page that hosts show beside the answers that have something to look at. Hosts that do not say that they
render such pages see nothing of it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from mcp.server.apps import Apps, client_supports_apps
from mcp.server.context import ServerRequestContext
from mcp.types import Tool

from diffing_mcp.methods.registry import all_methods

PAGE = "ui://diffing/page.html"
"""One page for all: hosts review and keep it once."""
_SHOWN_BESIDE = ("compare_text", "overview", "view_run", "get_job")


@lru_cache(maxsize=1)
def page() -> str:
    """The page: style and script within it, no request to anywhere, all text of models set as text."""
    return Path(__file__).with_name("app.html").read_text(encoding="utf-8")


def apps() -> Apps:
    """The extension with the page. No domain is named, so hosts let it reach none."""
    extension = Apps()
    extension.add_html_resource(
        PAGE, page(), name="page", title="What both models expect, and what runs found", prefers_border=True
    )
    return extension


def with_page(tool: Tool) -> Tool:
    """The tool as a host that renders pages lists it."""
    if tool.name not in _SHOWN_BESIDE and tool.name not in all_methods():
        return tool
    return tool.model_copy(update={"meta": {"ui": {"resourceUri": PAGE}}})


def renders(context: ServerRequestContext) -> bool:
    """Whether the client said that it renders such pages."""
    return client_supports_apps(context)
