"""Telling clients that their list of tools has changed, in both eras of the protocol, and advertising just that."""

from __future__ import annotations

from typing import Any

from mcp.server.lowlevel import Server
from mcp.server.session import ServerSession
from mcp.server.subscriptions import SubscriptionBus, ToolsListChanged
from mcp.types import ServerCapabilities


def advertise_what_is_sent(server: Server[Any]) -> None:
    """Make the server advertise changes of its list of tools, which it sends, and no others: the SDK derives them all
    from one switch.
    """
    derived = server.get_capabilities

    def capabilities(*args: Any, **kwargs: Any) -> ServerCapabilities:
        found = derived(*args, **kwargs)
        if found.tools is not None:
            found.tools.list_changed = True
        if found.prompts is not None:
            found.prompts.list_changed = False
        if found.resources is not None:
            found.resources.list_changed = found.resources.subscribe = False
        return found

    server.get_capabilities = capabilities  # type: ignore[method-assign]


async def tell_that_tools_changed(session: ServerSession, bus: SubscriptionBus) -> None:
    """Tell a client of 2025 through its session, and those that listen by the rules of 2026 through the bus. Each is a
    no-op in the other era.
    """
    await session.send_tool_list_changed()
    await bus.publish(ToolsListChanged())
