"""`diffing panel`: the Gradio panel."""

from __future__ import annotations

import socket
from typing import Annotated

import typer

from diffing_mcp.core.errors import InvalidInput


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("panel")(panel)


def panel(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 7860,
) -> None:
    """Open the panel: what is known of a pair, its runs with plots, jobs, and both models side by side."""
    from diffing_mcp.cli.output import quiet_libraries

    quiet_libraries()
    chosen = bindable(host, port)
    # Before anything heavy is imported: Gradio alone takes many seconds on a slow machine.
    print(f"The panel opens at http://{host}:{chosen} (ready in a few seconds; ctrl-C ends it)", flush=True)
    from diffing_mcp.ui.panel import launch

    launch(host=host, port=chosen)


def bindable(host: str, port: int) -> int:
    """The port to listen on, a free one for 0.

    Raises:
        InvalidInput: the port is taken, or the address is not this machine's.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InvalidInput(
                f"The panel cannot listen on {host}:{port} ({error.strerror}). Perhaps it is open there already; else "
                "choose another port: `diffing panel --port 0` takes a free one."
            ) from error
        return int(probe.getsockname()[1])
