"""Starting the server: over stdio for one host, or over HTTP for any number of clients of one warm process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import uvicorn

from diffing_mcp.core.data_folder import folder_identity
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.settings import settings
from diffing_mcp.mcp_server.auth import OPERATOR, BearerGate, caller_of_token, is_loopback, open_access
from diffing_mcp.mcp_server.server_context import ServerContext

if TYPE_CHECKING:
    from diffing_mcp.mcp_server.auth import Asgi, Caller
    from diffing_mcp.mcp_server.offer import Selection
    from diffing_mcp.mcp_server.server import DiffingServer
    from diffing_mcp.queries.hypothesis_schemas import Judge

logger = logging.getLogger(__name__)

MCP_PATH = "/mcp"
# Seconds for jobs to reach their next batch, and for open answers to be sent, when the server is told to end.
JOB_GRACE = 10.0
ANSWER_GRACE = 3


def build_server(
    context: ServerContext, caller: Caller | None = OPERATOR, selection: Selection | None = None
) -> DiffingServer:
    """The server object; `caller` is who its client is outside of HTTP (None: only authenticated HTTP requests),
    `selection` what it lists at first (None: as the settings say).
    """
    from diffing_mcp.mcp_server.server import DiffingServer

    return DiffingServer(context, caller, selection)


def serve_stdio(token: str | None = None, selection: Selection | None = None, judge: Judge | None = None) -> None:
    """Serve one client over stdin and stdout until it closes them. With a token of an investigation the client sees
    just that.

    Raises:
        InvalidInput: the token is not valid.
    """
    _log_to_stderr()
    caller = caller_of_token(token, open_access=True)
    if caller is None:
        raise InvalidInput("the token is not valid (unknown, or its investigation is closed)")
    context = ServerContext(judge=judge)
    server = build_server(context, caller, selection)

    async def run() -> None:
        def stop() -> None:
            # The thread that reads stdin cannot be interrupted, so after an orderly end of the work the process leaves
            # at once.
            context.close(JOB_GRACE)
            sys.stderr.flush()
            os._exit(0)

        with contextlib.suppress(NotImplementedError):  # Windows has no signal handlers on its event loop
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, stop)
        await server.run_stdio_async()

    try:
        asyncio.run(run())
    finally:
        context.close(JOB_GRACE)


def http_app(context: ServerContext, host: str, selection: Selection | None = None) -> Asgi:
    """The ASGI application: MCP at /mcp, /health, and the token check in front of everything else."""
    from mcp.server.transport_security import TransportSecuritySettings
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response

    server = build_server(context, None, selection)

    @server.custom_route("/health", methods=["GET"])
    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "server": "diffing", "data": folder_identity(settings().data_folder)})

    hosts = [
        "127.0.0.1",
        "localhost",
        "[::1]",
        *([] if host in ("0.0.0.0", "::") else [host]),
        *settings().allowed_hosts,
    ]
    if settings().public_url:
        from urllib.parse import urlsplit

        hosts.append(urlsplit(settings().public_url or "").netloc)
    allowed = [
        variant
        for name in dict.fromkeys(hosts)
        if name
        for variant in ([name] if ":" in name.strip("[]") and "]" not in name else [name, f"{name}:*"])
    ]
    security = TransportSecuritySettings(
        enable_dns_rebinding_protection=True,
        allowed_hosts=allowed,
        allowed_origins=[f"{scheme}://{name}" for scheme in ("http", "https") for name in allowed],
    )
    app = server.streamable_http_app(streamable_http_path=MCP_PATH, host=host, transport_security=security)
    return BearerGate(app, open_access=open_access(host))


def serve_http(
    host: str | None = None,
    port: int | None = None,
    selection: Selection | None = None,
    *,
    judge: Judge | None = None,
    with_parent: bool = False,
) -> None:
    """Serve over streamable HTTP until SIGTERM or SIGINT. Prints the address to stderr once it listens.

    `with_parent`: also until stdin closes, which it does however the process that holds its other end dies.
    """
    _log_to_stderr()
    host, port = host or settings().host, settings().port if port is None else port
    context = ServerContext(judge=judge)
    server = JobStoppingServer(
        uvicorn.Config(
            http_app(context, host, selection),
            host=host,
            port=port,
            log_level="warning",
            timeout_graceful_shutdown=ANSWER_GRACE,
            lifespan="on",
        ),
        context,
    )
    if not is_loopback(host) and settings().operator_token is None:
        logger.warning("listening on %s without an operator token: only tokens of investigations are accepted", host)
    if with_parent:
        threading.Thread(target=_end_with_stdin, args=(server,), name="parent", daemon=True).start()
    try:
        server.run()
    finally:
        context.close(JOB_GRACE)


class JobStoppingServer(uvicorn.Server):
    """uvicorn that stops the jobs first, so that answers waiting for them are sent before connections close."""

    def __init__(self, config: uvicorn.Config, context: ServerContext, *, own_process: bool = True) -> None:
        super().__init__(config)
        self.context = context
        self.own_process = own_process

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn raises the signal again after an orderly end, so that the process dies of it; here an orderly end is
        # exit code 0.
        if not self.own_process:
            yield
            return
        with super().capture_signals():
            yield
            self._captured_signals.clear()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        for listener in self.servers:
            for bound in listener.sockets:
                address, port = bound.getsockname()[:2]
                shown = f"[{address}]" if ":" in address else address
                sys.stderr.write(f"serving MCP on http://{shown}:{port}{MCP_PATH}\n")
                sys.stderr.flush()

    async def shutdown(self, sockets: Any = None) -> None:
        await asyncio.to_thread(self.context.close, JOB_GRACE)
        await super().shutdown(sockets)


@contextlib.asynccontextmanager
async def running_http(context: ServerContext, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """The HTTP server inside a running event loop; yields its URL. For harnesses and tests that own the process."""
    config = uvicorn.Config(
        http_app(context, host), host=host, port=port, log_level="warning", timeout_graceful_shutdown=ANSWER_GRACE
    )
    server = JobStoppingServer(config, context, own_process=False)
    task = asyncio.create_task(server.serve())
    while not server.started:
        if task.done():
            await task
        await asyncio.sleep(0.02)
    bound = server.servers[0].sockets[0].getsockname()
    try:
        yield f"http://{host}:{bound[1]}{MCP_PATH}"
    finally:
        server.should_exit = True
        await task


def _end_with_stdin(server: uvicorn.Server) -> None:
    # The file itself: a thread that waits inside the buffered reader would block the interpreter's end.
    while os.read(0, 4096):
        pass
    server.should_exit = True


def _log_to_stderr() -> None:
    """All logs to stderr: over stdio, stdout belongs to the protocol."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
