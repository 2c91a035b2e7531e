"""The MCP server as the panel uses it: one that serves this data folder already, or a child process that is started
when a model is first needed and ends with the panel.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from diffing_mcp.agents.mcp_session import NoServer, ToolFailed, call_as_operator, operator_session
from diffing_mcp.agents.server_process import server_process
from diffing_mcp.core.data_folder import folder_identity
from diffing_mcp.core.loopback import through_proxies
from diffing_mcp.core.settings import settings

EVERY_SECONDS = 1
"""How often work that is followed says how far it is."""

Found = Literal["ours", "other folder", "stranger", "nothing"]
"""What answers at an address: our server over this data folder, ours over another one, something else, or nothing."""


class ServerConnection:
    """Finds, starts and calls the MCP server. One per panel; safe for several threads.

    Args:
        url: endpoint such as `http://127.0.0.1:8931/mcp`; None takes the server at the address of the settings if it
            is ours and serves this data folder, else starts one on a free port.
        data_folder: whose runs the panel shows; the log of a started server goes there.
    """

    def __init__(self, url: str | None, data_folder: Path) -> None:
        self.fixed = url is not None
        self._default = url or f"http://{settings().host}:{settings().port}/mcp"
        self._url = self._default
        self._data_folder = data_folder
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

    def look(self) -> Found:
        """What answers /health at the endpoint within 2 s. A child that takes longer is still ours: while it loads
        models on a busy machine nothing else of it may run, and whoever took it for dead would end its jobs.
        """
        try:
            # The address is the operator's own setting, never something that was typed into the panel.
            proxies: dict[str, str] | None = None if through_proxies(self._url) else {}
            opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
            with opener.open(self._url.removesuffix("/mcp") + "/health", timeout=2) as response:
                said = json.loads(response.read(4096))
        except urllib.error.HTTPError:
            return "stranger"
        except OSError as error:  # URLError is one, around its reason
            slow = isinstance(getattr(error, "reason", error), TimeoutError)
            return "ours" if slow and self._started else "nothing"
        except ValueError:
            return "stranger"
        if not isinstance(said, dict) or said.get("server") != "diffing":
            return "stranger"
        return "ours" if said.get("data") == folder_identity(self._data_folder) else "other folder"

    def answers(self) -> bool:
        """Whether a server can be called that writes its runs to this data folder."""
        return self.look() == "ours"

    def start(self) -> None:
        """Start a server as a child process on a free port and wait until it answers; nothing happens when one of this
        data folder answers already.

        Raises:
            ServerDidNotStart: with the end of its log.
            NoServer: the address was given, so starting another server would not be what was asked for.
        """
        from anyio.from_thread import start_blocking_portal

        with self._lock:
            found = self.look()
            if found == "ours":
                return
            if self.fixed:
                what = {
                    "nothing": "No server answers",
                    "stranger": "Something that is no Diffing MCP server answers",
                    "other folder": f"A server of another data folder than {self._data_folder} answers",
                }[found]
                raise NoServer(
                    f"{what} at {self._url}, the address the panel was given. Start one there with `diffing serve "
                    "--http`, or start the panel without an address."
                )
            self._child.close()
            portal = self._child.enter_context(start_blocking_portal())
            child = server_process(
                self._data_folder / "panel-server.log", environment={"DIFFING_DATA_FOLDER": str(self._data_folder)}
            )
            try:
                self._url = self._child.enter_context(portal.wrap_async_context_manager(child))
            except BaseException:
                self._child.close()
                raise
            self._started = True

    def close(self) -> None:
        """Stop the child, if there is one. Its finished runs are kept."""
        with self._lock:
            self._child.close()
            self._started, self._url = False, self._default

    async def call(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """A tool's finished result as an operator; work that takes long is waited for. A server is started when there
        is none.

        Raises:
            ToolFailed: the tool answered with an error, which says what to do next.
            NoServer, ServerDidNotStart: as `start`.
        """
        await asyncio.to_thread(self.start)
        return await call_as_operator(self._url, tool, arguments)

    async def begin(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """A tool's answer without waiting for its work: `status`, and a `job` while the work goes on. Raises as `call`
        does.
        """
        await asyncio.to_thread(self.start)
        async with operator_session(self._url) as session:
            return await session.begin(tool, arguments)

    async def follow(self, tool: str, arguments: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """A tool's answers until its work is done: each says how far its `job` is, the last one has the `result`.

        Raises:
            ToolFailed: also when the job was cancelled meanwhile. NoServer, ServerDidNotStart: as `start`.
        """
        answer = await self.begin(tool, {**arguments, "wait_seconds": EVERY_SECONDS})
        while answer.get("status") == "running":
            yield answer
            waiting = {"job_id": answer["job"]["job_id"], "wait_seconds": EVERY_SECONDS}
            answer = await self.begin("get_job", waiting)
        if answer.get("status") == "cancelled":
            raise ToolFailed(tool, "Stopped.")
        yield answer

    async def jobs(self) -> list[dict[str, Any]]:
        """The jobs of the server, oldest first; none when no server of this data folder answers (none is started)."""
        if not await asyncio.to_thread(self.answers):
            return []
        return list((await call_as_operator(self._url, "get_job", {}))["jobs"])
