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
from urllib.parse import urlsplit

import uvicorn

from diffing_mcp.core.data_folder import folder_identity
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.settings import settings
from diffing_mcp.mcp_server.auth import OPERATOR, BearerGate, caller_of_token, check_exposed, open_access
from diffing_mcp.mcp_server.monitoring import log_to_stderr, send_traces
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.mcp_server.whole_requests import WholeRequests

if TYPE_CHECKING:
    from diffing_mcp.mcp_server.auth import Asgi, Caller
    from diffing_mcp.mcp_server.offer import Selection
    from diffing_mcp.mcp_server.server import DiffingServer
    from diffing_mcp.queries.hypothesis_schemas import Judge

logger = logging.getLogger(__name__)

MCP_PATH = "/mcp"
# Seconds for jobs to reach their next batch when the server is told to end: whoever waits for them is told at once.
# Hosts kill a server over stdio that takes longer than about two seconds.
JOB_GRACE = 3.0
STDIO_JOB_GRACE = 1.0
# Seconds for answers to be written, and for connections to close after that.
ANSWER_GRACE = 0.3
CONNECTION_GRACE = 2
# Seconds that an idle connection stays. Longer than clients keep theirs (5 s in httpx), or now and then a request goes
# out on a connection that is just being closed.
KEEP_ALIVE = 30


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
    log_to_stderr()
    send_traces()
    caller = caller_of_token(token, open_access=True)
    if caller is None:
        raise InvalidInput("the token is not valid (unknown, or its investigation is closed)")
    context = ServerContext(judge=judge)
    server = build_server(context, caller, selection)

    async def end() -> None:
        await asyncio.to_thread(context.close, STDIO_JOB_GRACE)
        await asyncio.sleep(ANSWER_GRACE)
        _leave()  # the thread that reads stdin cannot be interrupted

    async def run() -> None:
        ending: list[asyncio.Task[None]] = []
        with contextlib.suppress(NotImplementedError):  # Windows has no signal handlers on its event loop
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, lambda: ending.append(asyncio.create_task(end())))
        await server.run_stdio_async()

    try:
        asyncio.run(run())
    finally:
        if not context.close(STDIO_JOB_GRACE):
            _leave()


def http_app(server: DiffingServer, host: str) -> Asgi:
    """The ASGI application: MCP at /mcp, /health, /metrics for operators, and the token check in front of everything
    but /health and, with an OAuth issuer, the address where clients learn of it.
    """
    from mcp.server.transport_security import TransportSecuritySettings
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response

    @server.custom_route("/health", methods=["GET"])
    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "server": "diffing", "data": folder_identity(settings().data_folder)})

    @server.custom_route("/metrics", methods=["GET"])
    async def metrics(request: Request) -> Response:
        if not server.caller().operator:
            return Response(status_code=403)
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4")

    allowed = allowed_names(host)
    security = TransportSecuritySettings(
        enable_dns_rebinding_protection=True,
        allowed_hosts=allowed,
        allowed_origins=[f"{scheme}://{name}" for scheme in ("http", "https") for name in allowed],
    )
    app = server.streamable_http_app(streamable_http_path=MCP_PATH, host=host, transport_security=security)
    public = {"/health"}
    if settings().oauth_issuer and settings().public_url:
        from mcp.server.auth.routes import create_protected_resource_routes
        from pydantic import AnyHttpUrl

        from diffing_mcp.mcp_server.oauth import READ_SCOPE, SCOPE

        resource, issuer = AnyHttpUrl(settings().public_url or ""), AnyHttpUrl(settings().oauth_issuer or "")
        told = create_protected_resource_routes(resource, [issuer], [SCOPE, READ_SCOPE], "diffing")
        app.router.routes.extend(told)
        public |= {route.path for route in told}
    return BearerGate(WholeRequests(app), open_access=open_access(host), public_paths=frozenset(public))


def allowed_names(host: str) -> list[str]:
    """What clients may call a server that listens on `host`, as the header Host says it: a name with and without a
    port, an address of IPv6 in brackets.
    """
    listening = f"[{host}]" if ":" in host and not host.startswith("[") else host
    names = ["127.0.0.1", "localhost", "[::1]", *([] if host in ("0.0.0.0", "::") else [listening])]
    names += settings().allowed_hosts
    if settings().public_url:
        names.append(urlsplit(settings().public_url or "").netloc)
    return [
        variant
        for name in dict.fromkeys(names)
        if name
        for variant in ([name] if ":" in name.strip("[]") and "]" not in name else [name, f"{name}:*"])
    ]


def serve_http(
    host: str | None = None,
    port: int | None = None,
    selection: Selection | None = None,
    judge: Judge | None = None,
    *,
    with_parent: bool = False,
) -> None:
    """Serve over streamable HTTP until SIGTERM or SIGINT. Prints the address to stderr once it listens.

    `with_parent`: also until stdin closes, which it does however the process that holds its other end dies.
    """
    log_to_stderr()
    send_traces()
    host, port = host or settings().host, settings().port if port is None else port
    check_exposed(host)
    context = ServerContext(judge=judge)
    server = JobStoppingServer(
        uvicorn.Config(
            http_app(build_server(context, None, selection), host),
            host=host,
            port=port,
            log_level="warning",
            timeout_graceful_shutdown=CONNECTION_GRACE,
            timeout_keep_alive=KEEP_ALIVE,
            lifespan="on",
        ),
        context,
    )
    if with_parent:
        threading.Thread(target=_end_with_stdin, args=(server,), name="parent", daemon=True).start()
    try:
        server.run()
    finally:
        if not context.close(0):
            _leave()


class JobStoppingServer(uvicorn.Server):
    """uvicorn that stops the jobs first, so that answers waiting for them are sent before connections close."""

    def __init__(self, config: uvicorn.Config, context: ServerContext, *, own_process: bool = True) -> None:
        super().__init__(config)
        self.context = context
        self.own_process = own_process
        self._told_to_end = False

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A signal: the first ends the server in order (`on_tick`), a second at once."""
        # uvicorn's own, which the library of event streams wraps, cuts every open stream before its answer is there.
        if self._told_to_end:
            super().handle_exit(sig, frame)
        self._told_to_end = True

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; true ends the server."""
        if self._told_to_end and not self.should_exit:
            await self._stop_jobs()
            self.should_exit = True
        return await super().on_tick(counter)

    async def _stop_jobs(self) -> None:
        await asyncio.to_thread(self.context.close, JOB_GRACE)
        await asyncio.sleep(ANSWER_GRACE)

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
        if not self._told_to_end:
            await self._stop_jobs()
        await super().shutdown(sockets)


@contextlib.asynccontextmanager
async def running_http(
    context: ServerContext, host: str = "127.0.0.1", port: int = 0, server: DiffingServer | None = None
) -> AsyncIterator[str]:
    """The HTTP server inside a running event loop; yields its URL. For harnesses and tests that own the process, which
    may bring a `server` of their own on the context.
    """
    config = uvicorn.Config(
        http_app(server or build_server(context, None), host),
        host=host,
        port=port,
        log_level="warning",
        timeout_graceful_shutdown=CONNECTION_GRACE,
        timeout_keep_alive=KEEP_ALIVE,
    )
    web = JobStoppingServer(config, context, own_process=False)
    task = asyncio.create_task(web.serve())
    while not web.started:
        if task.done():
            await task
        await asyncio.sleep(0.02)
    bound = web.servers[0].sockets[0].getsockname()
    try:
        yield f"http://{host}:{bound[1]}{MCP_PATH}"
    finally:
        web.should_exit = True
        await task


def _end_with_stdin(server: uvicorn.Server) -> None:
    # The file itself: a thread that waits inside the buffered reader would block the interpreter's end.
    while os.read(0, 4096):
        pass
    server.should_exit = True


def _leave() -> None:
    """End the process at once, whatever its threads are at: a batch that does not end, or a read that never comes."""
    sys.stderr.flush()
    os._exit(0)
