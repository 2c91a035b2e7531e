"""A thin stdio server that forwards everything to a warm HTTP server, so that hosts which only start processes share
one set of loaded models.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import httpx2
from mcp import Client
from mcp import types as mcp_types
from mcp.client.streamable_http import streamable_http_client
from mcp.server import Server
from mcp.server.context import ServerRequestContext
from mcp.server.stdio import stdio_server

from diffing_mcp.core.version import version

Request = ServerRequestContext[Any, Any]


@asynccontextmanager
async def http_client(url: str, token: str | None) -> AsyncIterator[Client]:
    """An MCP client of the server at `url`, with a bearer token when there is one."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    # Waiting for a job takes up to 50 s without a byte; the server's pings come every 15 s.
    async with (
        httpx2.AsyncClient(headers=headers, timeout=httpx2.Timeout(30, read=300), follow_redirects=False) as web,
        Client(streamable_http_client(url, http_client=web)) as client,
    ):
        yield client


def bridge_server(client: Client) -> Server[Any]:
    """A low-level server whose handlers ask `client`."""

    async def list_tools(context: Request, params: Any) -> mcp_types.ListToolsResult:
        return await client.list_tools()

    async def call_tool(context: Request, params: mcp_types.CallToolRequestParams) -> mcp_types.CallToolResult:
        async def forward(progress: float, total: float | None, message: str | None) -> None:
            await context.session.report_progress(progress, total, message)

        # Our server asks the user nothing, so these answers are always final.
        return cast(
            mcp_types.CallToolResult,
            await client.call_tool(params.name, params.arguments or {}, progress_callback=forward),
        )

    async def list_prompts(context: Request, params: Any) -> mcp_types.ListPromptsResult:
        return await client.list_prompts()

    async def get_prompt(context: Request, params: mcp_types.GetPromptRequestParams) -> mcp_types.GetPromptResult:
        return cast(mcp_types.GetPromptResult, await client.get_prompt(params.name, params.arguments))

    async def list_resources(context: Request, params: Any) -> mcp_types.ListResourcesResult:
        return await client.list_resources()

    async def list_templates(context: Request, params: Any) -> mcp_types.ListResourceTemplatesResult:
        return await client.list_resource_templates()

    async def read_resource(
        context: Request, params: mcp_types.ReadResourceRequestParams
    ) -> mcp_types.ReadResourceResult:
        return cast(mcp_types.ReadResourceResult, await client.read_resource(params.uri))

    return Server(
        "diffing",
        title="Model diffing",
        version=version(),
        instructions=client.instructions,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_prompts=list_prompts,
        on_get_prompt=get_prompt,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
    )


def connect(url: str, token: str | None = None) -> None:
    """Serve stdio by forwarding to the server at `url` until stdin closes."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)

    async def run() -> None:
        async with http_client(url, token) as client, stdio_server() as (read, write):
            server = bridge_server(client)
            await server.run(read, write, server.create_initialization_options())

    anyio.run(run)
