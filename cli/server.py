"""`diffing serve` and `diffing connect`: the MCP server, and a stdio bridge to one that runs elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("serve")(serve)
    app.command("connect")(connect)


def serve(
    http: Annotated[bool, typer.Option("--http", help="Streamable HTTP instead of stdio: one process for many clients.")] = False,
    host: Annotated[str | None, typer.Option(help="Address to listen on (with --http). Default: the setting `host`, 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on (with --http). Default: the setting `port`, 8931.")] = None,
) -> None:
    """Serve the tools over MCP: on stdin and stdout for a host that starts this command, or over HTTP."""
    from organisms.errors import InvalidInput

    if not http and (host is not None or port is not None):
        raise InvalidInput("--host and --port go with --http; without it the server speaks on stdin and stdout.")
    from cli.output import quiet_libraries

    quiet_libraries()
    if http:
        from mcp_server.serving import serve_http

        serve_http(host, port)
    else:
        from mcp_server.serving import serve_stdio

        serve_stdio()


def connect(
    url: Annotated[str, typer.Argument(help="The MCP endpoint of a running server, such as http://127.0.0.1:8931/mcp.")],
    token: Annotated[str | None, typer.Option(envvar="DIFFING_TOKEN", help="Bearer token: an operator's or an investigation's.")] = None,
) -> None:
    """Be a stdio MCP server that forwards to a running HTTP server, for hosts that only start commands."""
    import asyncio

    from cli.bridge import bridge

    asyncio.run(bridge(url, token))
