"""A stdio MCP server that forwards everything to one running HTTP server, so that several hosts share one process with its models.

Progress is passed on. Nothing is computed here, and nothing but the SDK is imported.
"""

from __future__ import annotations

from typing import Any

from organisms.errors import DiffingError


class ServerUnreachable(DiffingError):
    """The HTTP server does not answer."""

    code = "server_unreachable"


# A tool call may be silent for as long as the server lets it wait (45 s, with pings between).
READ_SECONDS = 300
CONNECT_SECONDS = 10


async def bridge(url: str, token: str | None) -> None:
    """Serve MCP over stdin and stdout until stdin closes, forwarding to the MCP endpoint at `url` with a bearer token if there is one.

    Raises:
        ServerUnreachable: nothing answers at `url`, or it refuses the token.
    """
    import httpx2
    from mcp import Client
    from mcp.client.streamable_http import streamable_http_client
    from mcp.server.stdio import stdio_server

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    await _check(url, headers)
    timeout = httpx2.Timeout(CONNECT_SECONDS, read=READ_SECONDS)
    async with httpx2.AsyncClient(headers=headers, timeout=timeout) as http, Client(streamable_http_client(url, http_client=http)) as client:
        server = forwarding_server(client, url)
        async with stdio_server() as (reader, writer):
            await server.run(reader, writer, server.create_initialization_options())


async def _check(url: str, headers: dict[str, str]) -> None:
    """Say what is wrong before a protocol is spoken: the SDK reports a refused connection as a group of exceptions."""
    import httpx2

    try:
        async with httpx2.AsyncClient(headers=headers, timeout=CONNECT_SECONDS) as http:
            # A GET without a session is refused by every MCP server, in its own words; all that counts is who answers.
            answer = await http.get(url, headers={"Accept": "application/json"})
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise ServerUnreachable(f"Nothing answers at {url} ({reason}). Start the server with `diffing serve --http`, or correct the address.") from error
    if answer.status_code in (401, 403):
        raise ServerUnreachable(f"The server at {url} refuses the token. Give a valid one with --token or DIFFING_TOKEN.")
    if answer.status_code == 404:
        raise ServerUnreachable(f"The server at {url} has no MCP endpoint at that path; it usually ends in /mcp.")


def forwarding_server(client: Any, url: str) -> Any:
    """A low-level server whose handlers call the same methods of `client`."""
    from mcp.server.lowlevel import Server
    from mcp.shared.exceptions import MCPError
    from mcp.types import CallToolResult, TextContent

    async def list_tools(context: Any, params: Any) -> Any:
        return await client.list_tools(cursor=_cursor(params))

    async def call_tool(context: Any, params: Any) -> Any:
        async def progress(done: float, total: float | None, message: str | None) -> None:
            await context.session.report_progress(done, total, message)

        try:
            return await client.call_tool(params.name, params.arguments or {}, progress_callback=progress)
        except MCPError:
            raise
        except Exception as error:
            text = f"The server at {url} did not answer ({type(error).__name__}). Finished runs are kept: when it is back, make the same call again."
            return CallToolResult(content=[TextContent(type="text", text=text)], is_error=True)

    async def list_resources(context: Any, params: Any) -> Any:
        return await client.list_resources(cursor=_cursor(params))

    async def list_resource_templates(context: Any, params: Any) -> Any:
        return await client.list_resource_templates(cursor=_cursor(params))

    async def read_resource(context: Any, params: Any) -> Any:
        return await client.read_resource(str(params.uri))

    async def list_prompts(context: Any, params: Any) -> Any:
        return await client.list_prompts(cursor=_cursor(params))

    async def get_prompt(context: Any, params: Any) -> Any:
        return await client.get_prompt(params.name, params.arguments)

    about = client.server_info
    return Server(
        about.name if about else "diffing",
        version=about.version if about else "",
        instructions=client.instructions,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_resource_templates,
        on_read_resource=read_resource,
        on_list_prompts=list_prompts,
        on_get_prompt=get_prompt,
    )


def _cursor(params: Any) -> str | None:
    return getattr(params, "cursor", None)
