"""Requests that arrive whole, or not at all."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffing_mcp.mcp_server.auth import Asgi, Receive, Scope, Send

logger = logging.getLogger(__name__)


class WholeRequests:
    """ASGI wrapper that hands on a posted request once all of its body is there. Of a client that hangs up before, the
    application hears nothing: it would take that for an error of its own, with a traceback, and have nobody to tell.

    The protocol reads each body whole before it looks at it, so that no more memory is taken.
    """

    def __init__(self, app: Asgi) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        parts: list[bytes] = []
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                logger.info("a client hung up while it sent a request of %s", scope["path"])
                return
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        body: dict[str, Any] | None = {"type": "http.request", "body": b"".join(parts), "more_body": False}

        async def receive_whole() -> Any:
            nonlocal body
            if body is None:
                return await receive()
            whole, body = body, None
            return whole

        await self.app(scope, receive_whole, send)
