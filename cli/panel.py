"""`diffing panel`: the Gradio panel."""

from __future__ import annotations

from typing import Annotated

import typer

from diffing_mcp.cli.ports import bindable


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
