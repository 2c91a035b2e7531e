"""Telling clients what has changed, in both eras of the protocol: their list of tools, and the list of finished runs
when a job ends. What is advertised is what is sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.session import ServerSession
from mcp.server.subscriptions import ListenHandler, ResourceUpdated, SubscriptionBus, ToolsListChanged
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    EmptyResult,
    ServerCapabilities,
    SubscribeRequestParams,
    SubscriptionsListenRequestParams,
    SubscriptionsListenResult,
    UnsubscribeRequestParams,
)

logger = logging.getLogger(__name__)

Request = ServerRequestContext[Any, Any]

MOST_SUBSCRIPTIONS = 1000
"""Of clients of 2025, whose leaving nobody reports: the oldest is forgotten then."""


def advertise_what_is_sent(server: Server[Any], *, resources: bool = False) -> None:
    """Make the server advertise changes of its list of tools, updates of `resources` where it sends them, and no
    others: the SDK derives them all from one switch.
    """
    derived = server.get_capabilities

    def capabilities(*args: Any, **kwargs: Any) -> ServerCapabilities:
        found = derived(*args, **kwargs)
        if found.tools is not None:
            found.tools.list_changed = True
        if found.prompts is not None:
            found.prompts.list_changed = False
        if found.resources is not None:
            found.resources.list_changed = False
            found.resources.subscribe = resources
        return found

    server.get_capabilities = capabilities  # type: ignore[method-assign]


async def tell_that_tools_changed(session: ServerSession, bus: SubscriptionBus) -> None:
    """Tell a client of 2025 through its session, and those that listen by the rules of 2026 through the bus. Each is a
    no-op in the other era.
    """
    await session.send_tool_list_changed()
    await bus.publish(ToolsListChanged())


class Updates:
    """Who wants to hear of changes of resources, and telling them. `allowed` says whether the sender of the request
    being served may: when others' runs end is nothing for an investigation.
    """

    def __init__(self, bus: SubscriptionBus, allowed: Callable[[], bool]) -> None:
        self._bus = bus
        self._allowed = allowed
        self._listen = ListenHandler(bus)
        self._subscribed: OrderedDict[tuple[int, str], ServerSession] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._telling: set[asyncio.Task[None]] = set()

    def serve(self, server: Server[Any]) -> None:
        """Register the handlers of both eras."""
        server.add_request_handler("subscriptions/listen", SubscriptionsListenRequestParams, self._on_listen)
        server.add_request_handler("resources/subscribe", SubscribeRequestParams, self._on_subscribe)
        server.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, self._on_unsubscribe)

    def tell_from_thread(self, uri: str) -> None:
        """Say, from any thread, that a resource has changed; nothing happens while nobody has asked to hear of it."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._start, uri)

    def _start(self, uri: str) -> None:
        task = asyncio.create_task(self._tell(uri))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell(self, uri: str) -> None:
        await self._bus.publish(ResourceUpdated(uri=uri))
        for (_, wanted), session in list(self._subscribed.items()):
            if wanted == uri:
                await session.send_resource_updated(uri)

    async def _on_listen(self, context: Request, params: SubscriptionsListenRequestParams) -> SubscriptionsListenResult:
        if params.notifications.resource_subscriptions and not self._allowed():
            fewer = params.notifications.model_copy(update={"resource_subscriptions": None})
            params = params.model_copy(update={"notifications": fewer})
        self._loop = asyncio.get_running_loop()
        return await self._listen(context, params)

    async def _on_subscribe(self, context: Request, params: SubscribeRequestParams) -> EmptyResult:
        if not self._allowed():
            raise MCPError(INVALID_PARAMS, "resources are for operators")
        self._loop = asyncio.get_running_loop()
        self._subscribed[self._key(context, str(params.uri))] = context.session
        while len(self._subscribed) > MOST_SUBSCRIPTIONS:
            self._subscribed.popitem(last=False)
        return EmptyResult()

    async def _on_unsubscribe(self, context: Request, params: UnsubscribeRequestParams) -> EmptyResult:
        self._subscribed.pop(self._key(context, str(params.uri)), None)
        return EmptyResult()

    @staticmethod
    def _key(context: Request, uri: str) -> tuple[int, str]:
        # A session object is made for each request; what the client said of itself is the connection's.
        return id(context.session.client_params), uri
