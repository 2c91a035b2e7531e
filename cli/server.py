"""`diffing serve` and `diffing connect`: the MCP server, and a stdio bridge to one that runs elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

TokenOption = Annotated[
    str | None, typer.Option(envvar="DIFFING_TOKEN", help="Bearer token: an operator's or an investigation's.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("serve")(serve)
    app.command("connect")(connect)


def serve(
    http: Annotated[
        bool, typer.Option("--http", help="Streamable HTTP instead of stdio: one process for many clients.")
    ] = False,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on (with --http). Default: the setting `host`, 127.0.0.1.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port to listen on (with --http). Default: the setting `port`, 8931."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(help="Without --http: token of the investigation that the one client shall be confined to."),
    ] = None,
    toolsets: Annotated[
        str | None,
        typer.Option(
            help="Sets of tools that clients list, comma-separated: default, all, methods, runs, pairs, ... Default: "
            "the setting `toolsets`. Everything else is found by the tool more_tools."
        ),
    ] = None,
    tools: Annotated[
        str | None, typer.Option(help="Single tools that they list besides, comma-separated: kl,pca.")
    ] = None,
    read_only: Annotated[
        bool | None,
        typer.Option("--read-only", help="No tool that trains, stores, deletes or unloads; finished runs are kept."),
    ] = None,
    with_parent: Annotated[
        bool, typer.Option("--with-parent", help="With --http: end when stdin closes, so with whoever started it.")
    ] = False,
) -> None:
    """Serve the tools over MCP: on stdin and stdout for a host that starts this command, or over HTTP."""
    from diffing_mcp.cli.output import quiet_libraries
    from diffing_mcp.core.errors import InvalidInput

    if not http and (host is not None or port is not None or with_parent):
        raise InvalidInput(
            "--host, --port and --with-parent go with --http; without it the server speaks on stdin and stdout."
        )
    if http and token is not None:
        raise InvalidInput("--token goes with stdio; over HTTP every client sends its own token.")
    quiet_libraries()
    from diffing_mcp.core.settings import settings

    if http:
        from diffing_mcp.cli.ports import bindable

        bindable(host or settings().host, settings().port if port is None else port)
    from diffing_mcp.mcp_server.offer import Selection
    from diffing_mcp.mcp_server.serve import serve_http, serve_stdio

    selection, judge = Selection.from_settings(toolsets, tools, read_only), None
    if settings().judge is not None:
        from diffing_mcp.agents.judge import configured_judge

        judge = configured_judge()
    if http:
        serve_http(host, port, selection, judge, with_parent=with_parent)
    else:
        serve_stdio(token, selection, judge)


def connect(
    url: Annotated[
        str, typer.Argument(help="The MCP endpoint of a running server, such as http://127.0.0.1:8931/mcp.")
    ],
    token: TokenOption = None,
) -> None:
    """Be a stdio MCP server that forwards to a running HTTP server, for hosts that only start commands. While that
    server is away, every request is answered with what to start.
    """
    from diffing_mcp.mcp_server.bridge import connect as bridge

    bridge(url, token)
