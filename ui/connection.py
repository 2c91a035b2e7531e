"""The MCP server as the panel uses it: one that runs already, or a child process started on demand and stopped with the
panel.
"""

from __future__ import annotations

import atexit
import threading
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from diffing_mcp.agents.mcp_session import NoServer, call_as_operator
from diffing_mcp.agents.server_process import server_process
from diffing_mcp.core.settings import settings


class ServerConnection:
    """Finds, starts and calls the MCP server. One per panel; safe for several threads.

    Args:
        url: endpoint such as `http://127.0.0.1:8931/mcp`; None looks at the address of the settings and may start a
            server there.
        data_folder: where the log of a started server goes.
    """

    def __init__(self, url: str | None, data_folder: Path) -> None:
        self.fixed = url is not None
        self._url = url or f"http://{settings().host}:{settings().port}/mcp"
        self._log = data_folder / "panel-server.log"
        self._child = ExitStack()
        self._started = False
        self._lock = threading.Lock()
        atexit.register(self.close)

    @property
    def url(self) -> str:
        """The MCP endpoint that is used."""
        return self._url

    @property
    def started_here(self) -> bool:
        """Whether the server is a child of the panel."""
        return self._started

    def answers(self) -> bool:
        """Whether /health answers within 2 s."""
        try:
            # The address is the operator's own setting, never something that was typed into the panel.
            with urllib.request.urlopen(self._url.removesuffix("/mcp") + "/health", timeout=2) as response:
                return response.status == 200
        except (urllib.error.URLError, OSError, ValueError):
            return False

    def start(self) -> None:
        """Start a server as a child process on a free port and wait until it answers; nothing happens when one answers
        already.

        Raises:
            ServerDidNotStart: with the end of its log.
            NoServer: the address was given, so starting another server would not be what was asked for.
        """
        from anyio.from_thread import start_blocking_portal

        with self._lock:
            if self.answers():
                return
            if self.fixed:
                raise NoServer(
                    f"No server answers at {self._url}, the address the panel was given. Start one there, or start the "
                    "panel without an address."
                )
            self._child.close()
            portal = self._child.enter_context(start_blocking_portal())
            try:
                self._url = self._child.enter_context(portal.wrap_async_context_manager(server_process(self._log)))
            except BaseException:
                self._child.close()
                raise
            self._started = True

    def close(self) -> None:
        """Stop the child, if there is one. Its finished runs are kept."""
        with self._lock:
            self._child.close()
            self._started = False

    async def call(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """A tool's finished result as an operator; work that takes long is waited for.

        Raises:
            ToolFailed: the tool answered with an error, which says what to do next.
            NoServer: nothing answers.
        """
        return await call_as_operator(self._url, tool, arguments)
