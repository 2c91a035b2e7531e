"""A thin stdio server that forwards everything to a warm HTTP server, so that hosts which only start processes share
one set of loaded models. It starts without that server and outlives it: while nothing answers, every request gets an
error that says what to start.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import urlsplit

import anyio
import httpx2
from anyio.abc import TaskGroup
from mcp import Client, MCPError
from mcp import types as mcp_types
from mcp.client.extension import ClientExtension, advertise
from mcp.client.session import ElicitationFnT
from mcp.client.streamable_http import streamable_http_client
from mcp.server import Server
from mcp.server.apps import APP_MIME_TYPE, client_supports_apps
from mcp.server.apps import EXTENSION_ID as APPS
from mcp.server.context import HandlerResult, ServerRequestContext
from mcp.server.stdio import stdio_server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler

from diffing_mcp.core.certificates import trusted_certificates
from diffing_mcp.core.loopback import through_proxies
from diffing_mcp.core.version import version
from diffing_mcp.core.wire import IMAGES, STRUCTURED, expect_unlisted_tools
from diffing_mcp.mcp_server.changes import advertise_what_is_sent, tell_that_tools_changed
from diffing_mcp.mcp_server.consent import asks_users, is_stateless
from diffing_mcp.mcp_server.forwarded_tasks import PassTasksOn, send_task_request
from diffing_mcp.mcp_server.instructions import INSTRUCTIONS
from diffing_mcp.mcp_server.tasks import TASKS, TaskParams, has_tasks

Request = ServerRequestContext[Any, Any]

CONNECT_SECONDS = 3
"""A server on the same machine answers at once, and a host waits only a few seconds for a list of tools."""
WATCH_SECONDS = 1.0


UNREACHABLE = -32000
"""JSON-RPC leaves this code to the server."""


class ServerUnreachable(MCPError):
    """The HTTP server does not answer, or refuses the token."""

    def __init__(self, message: str) -> None:
        super().__init__(UNREACHABLE, message)


class RequestRefused(ServerUnreachable):
    """The server is there and refuses this request; whether it answers another need not be watched."""


@asynccontextmanager
async def http_client(
    url: str, token: str | None, extensions: Sequence[ClientExtension] = (), user: ElicitationFnT | None = None
) -> AsyncIterator[Client]:
    """An MCP client of the server at `url`, with a bearer token when there is one; it says that it has `extensions`,
    and, with a `user`, that questions can be put.
    """
    # Waiting for a job takes up to 50 s without a byte; the server's pings come every 15 s.
    timeout = httpx2.Timeout(CONNECT_SECONDS, read=300)
    heeded = through_proxies(url)

    async def look(answer: httpx2.Response) -> None:
        _refuse_errors(url, answer)

    async with (
        httpx2.AsyncClient(
            headers=_authorization(token),
            timeout=timeout,
            follow_redirects=False,
            trust_env=heeded,
            verify=trusted_certificates(heeded),
            event_hooks={"response": [look]},
        ) as web,
        Client(
            streamable_http_client(url, http_client=web), extensions=extensions, elicitation_callback=user
        ) as client,
    ):
        yield client


async def check_reachable(url: str, token: str | None) -> None:
    """Say what is wrong before a protocol is spoken; the protocol library reports a refused connection as a nest of
    exceptions.

    Raises:
        ServerUnreachable: nothing answers at `url`, it is no MCP endpoint, or the token is refused.
    """
    headers = {"Accept": "application/json, text/event-stream", **_authorization(token)}
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    heeded = through_proxies(url)
    try:
        async with httpx2.AsyncClient(
            headers=headers,
            timeout=CONNECT_SECONDS,
            trust_env=heeded,
            verify=trusted_certificates(heeded),
        ) as web:
            # Every MCP server answers this in its own words; all that counts here is who answers.
            answer = await web.post(url, json=ping)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise ServerUnreachable(
            f"Nothing answers at {url} ({str(error) or type(error).__name__}). Ask the user to start the server with "
            "`diffing serve --http`, or to correct the address; then call again."
        ) from error
    _refuse_errors(url, answer)
    if answer.status_code == 404:
        raise ServerUnreachable(f"The server at {url} has no MCP endpoint at that path; it usually ends in /mcp.")


def _refuse_errors(url: str, answer: httpx2.Response) -> None:
    """
    Raises:
        ServerUnreachable: an answer of a status that is not the protocol's, in words: its library says of all but the
            first that there was an error.
    """
    status = answer.status_code
    if status in (401, 403):
        raise ServerUnreachable(
            f"The server at {url} refuses the token. Ask the user for a valid one: --token or DIFFING_TOKEN."
        )
    if status == 429:
        seconds = answer.headers.get("retry-after", "60")
        raise RequestRefused(
            f"The token allows no more requests now. Call again in {seconds} s; each call takes some three requests."
        )
    if status == 421:
        name = urlsplit(url).hostname
        raise RequestRefused(
            f"The server at {url} does not serve clients that call it {name}. Whoever runs it can allow the name: "
            f"DIFFING_ALLOWED_HOSTS={name}."
        )
    if status == 413:
        raise RequestRefused("This request is larger than the token or the server allows. Ask for less in one call.")
    if 300 <= status < 400:
        place = answer.headers.get("location", "another address")
        raise RequestRefused(f"The server at {url} is to be found at {place}. Ask the user to correct the address.")
    if status >= 500:
        raise ServerUnreachable(
            f"What answers at {url} has an error (HTTP status {status}): the server behind it may be away. Call again; "
            "if it stays so, ask the user to look at its log."
        )


class Bridge:
    """Forwards requests, each over a connection of its own: the server keeps no session, and may end and start again
    between any two.
    """

    def __init__(self, url: str, token: str | None) -> None:
        self.url = url
        self.token = token
        self.bus = InMemorySubscriptionBus()
        self.watching = False

    @asynccontextmanager
    async def upstream(self, context: Request) -> AsyncIterator[Client]:
        """A client of the server; while there is none, the host is told as soon as it is back.

        Raises:
            ServerUnreachable: there is none, or it ended in the middle of the request.
        """
        try:
            await check_reachable(self.url, self.token)
            async with http_client(self.url, self.token, _forwarded_extensions(context), _user_of(context)) as client:
                yield client
        except Exception as error:
            # The client's task groups wrap what went wrong, several times over.
            cause = _first_leaf(error)
            if isinstance(cause, MCPError) and not isinstance(cause, ServerUnreachable):
                raise cause from None
            if not isinstance(cause, RequestRefused):
                self._watch(context)
            if isinstance(cause, ServerUnreachable):
                raise cause from None
            raise ServerUnreachable(
                f"The server at {self.url} went away before it answered. Call again once it is back: finished work is "
                "kept, and an equal call joins what still runs."
            ) from error

    def _watch(self, context: Request) -> None:
        if not self.watching:
            self.watching = True
            tasks: TaskGroup = context.lifespan_context
            tasks.start_soon(self._until_back, context)

    async def _until_back(self, context: Request) -> None:
        while True:
            await anyio.sleep(WATCH_SECONDS)
            try:
                await check_reachable(self.url, self.token)
            except ServerUnreachable:
                continue
            self.watching = False
            await tell_that_tools_changed(context.session, self.bus)
            return

    async def list_tools(self, context: Request, params: Any) -> mcp_types.ListToolsResult:
        async with self.upstream(context) as client:
            return await client.list_tools()

    async def call_tool(self, context: Request, params: mcp_types.CallToolRequestParams) -> HandlerResult:
        async def forward(progress: float, total: float | None, message: str | None) -> None:
            await context.session.report_progress(progress, total, message)

        asked = {key: value for key, value in dict(context.meta or {}).items() if key in (STRUCTURED, IMAGES)}
        meta = cast("mcp_types.RequestParamsMeta", asked) if asked else None
        name, arguments = params.name, params.arguments or {}
        result: mcp_types.Result
        try:
            async with self.upstream(context) as client:
                if is_stateless(context.protocol_version):
                    # A question or a task is an answer: the host itself calls again, or polls.
                    result = await client.session.call_tool(
                        name,
                        arguments,
                        progress_callback=forward,
                        input_responses=params.input_responses,
                        request_state=params.request_state,
                        meta=meta,
                        allow_input_required=True,
                        allow_claimed=True,
                    )
                else:
                    result = await client.call_tool(name, arguments, progress_callback=forward, meta=meta)
        except ServerUnreachable as error:
            text = mcp_types.TextContent(type="text", text=error.message)
            return mcp_types.CallToolResult(content=[text], is_error=True)
        if name == "more_tools":
            await tell_that_tools_changed(context.session, self.bus)
        return result.model_dump(mode="json", by_alias=True, exclude_unset=True)

    async def get_task(self, context: Request, params: TaskParams) -> HandlerResult:
        return await self._task(context, "get", params)

    async def update_task(self, context: Request, params: TaskParams) -> HandlerResult:
        return await self._task(context, "update", params)

    async def cancel_task(self, context: Request, params: TaskParams) -> HandlerResult:
        return await self._task(context, "cancel", params)

    async def _task(self, context: Request, name: str, params: TaskParams) -> HandlerResult:
        async with self.upstream(context) as client:
            return await send_task_request(client.session, name, params.task_id)

    async def list_prompts(self, context: Request, params: Any) -> mcp_types.ListPromptsResult:
        async with self.upstream(context) as client:
            return await client.list_prompts()

    async def get_prompt(self, context: Request, params: mcp_types.GetPromptRequestParams) -> mcp_types.GetPromptResult:
        async with self.upstream(context) as client:
            return await client.get_prompt(params.name, params.arguments)

    async def list_resources(self, context: Request, params: Any) -> mcp_types.ListResourcesResult:
        async with self.upstream(context) as client:
            return await client.list_resources()

    async def list_templates(self, context: Request, params: Any) -> mcp_types.ListResourceTemplatesResult:
        async with self.upstream(context) as client:
            return await client.list_resource_templates()

    async def read_resource(
        self, context: Request, params: mcp_types.ReadResourceRequestParams
    ) -> mcp_types.ReadResourceResult:
        async with self.upstream(context) as client:
            return await client.read_resource(params.uri)

    async def complete(self, context: Request, params: mcp_types.CompleteRequestParams) -> mcp_types.CompleteResult:
        async with self.upstream(context) as client:
            typed = {"name": params.argument.name, "value": params.argument.value}
            return await client.complete(params.ref, typed)


def _authorization(token: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def _forwarded_extensions(context: Request) -> list[ClientExtension]:
    """Those of the host that need nothing of the bridge: pages come with tools, answers and resources; tasks are polled
    by the host.
    """
    pages = [advertise(APPS, {"mimeTypes": [APP_MIME_TYPE]})] if client_supports_apps(context) else []
    return [*pages, PassTasksOn()] if has_tasks(context) else pages


def _user_of(host: Request) -> ElicitationFnT | None:
    """What puts a question of the server to the user of the host; None: this host asks no users."""
    if not asks_users(host.session.client_capabilities):
        return None

    async def put(context: Any, params: mcp_types.ElicitRequestParams) -> mcp_types.ElicitResult:
        if not isinstance(params, mcp_types.ElicitRequestFormParams):
            return mcp_types.ElicitResult(action="cancel")
        return await host.session.elicit_form(params.message, params.requested_schema, host.request_id)

    return put


def _first_leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@asynccontextmanager
async def _tasks(server: Server[Any]) -> AsyncIterator[TaskGroup]:
    async with anyio.create_task_group() as tasks:
        yield tasks
        tasks.cancel_scope.cancel()


def bridge_server(url: str, token: str | None = None) -> Server[Any]:
    """A low-level server whose handlers ask the server at `url`."""
    bridge = Bridge(url, token)
    server: Server[Any] = Server(
        "diffing",
        title="Model diffing",
        version=version(),
        instructions=INSTRUCTIONS,
        lifespan=_tasks,
        on_list_tools=bridge.list_tools,
        on_list_prompts=bridge.list_prompts,
        on_get_prompt=bridge.get_prompt,
        on_list_resources=bridge.list_resources,
        on_list_resource_templates=bridge.list_templates,
        on_read_resource=bridge.read_resource,
        on_completion=bridge.complete,
        on_subscriptions_listen=ListenHandler(bridge.bus),
    )
    server.extensions |= {APPS: {}, TASKS: {}}
    # Not by `on_call_tool`, whose answers are never tasks.
    server.add_request_handler("tools/call", mcp_types.CallToolRequestParams, bridge.call_tool)
    for name, handler in (("get", bridge.get_task), ("update", bridge.update_task), ("cancel", bridge.cancel_task)):
        server.add_request_handler(f"tasks/{name}", TaskParams, handler)
    advertise_what_is_sent(server)
    return server


def connect(url: str, token: str | None = None) -> None:
    """Serve stdio by forwarding to the server at `url` until stdin closes."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    expect_unlisted_tools()

    async def run() -> None:
        try:
            await check_reachable(url, token)
        except ServerUnreachable as error:
            sys.stderr.write(f"{error.message}\n")
        server = bridge_server(url, token)
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())

    anyio.run(run)
