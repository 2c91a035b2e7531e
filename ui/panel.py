"""The panel: four pages over the data folder and the MCP server. `build_panel` lays it out, `launch` serves it."""

from __future__ import annotations

import os

# Before Gradio is imported: it reads this once, and nothing here may leave the machine.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

from pathlib import Path
from typing import Protocol

import gradio as gr
from markupsafe import Markup

from diffing_mcp.core.settings import settings
from diffing_mcp.ui import results, runs, side_by_side, transcripts
from diffing_mcp.ui.connection import ServerConnection
from diffing_mcp.ui.files import PanelFiles
from diffing_mcp.ui.html import div, element, escape
from diffing_mcp.ui.theme import BASE, FINETUNED, css, theme


class Paths(Protocol):
    """The part of the settings that the panel reads."""

    @property
    def data_folder(self) -> Path:
        """Folder that holds `runs` and `evaluations`."""


class Panel(gr.Blocks):
    """The blocks, with the connection to the MCP server that its page uses."""

    connection: ServerConnection


def _masthead(data_folder: Path) -> Markup:
    legend = Markup(
        f"<span class='d-legend'><span><i style='background:{BASE}'></i>base</span><span><i "
        f"style='background:{FINETUNED}'></i>finetuned</span></span>"
    )
    return div(
        element("h1", "Model diffing"),
        legend,
        element("span", escape(data_folder), classes="d-where", title="The data folder"),
        classes="d-masthead",
    )


def build_panel(paths: Paths | None = None, server_url: str | None = None) -> Panel:
    """The panel as Gradio blocks.

    Args:
        paths: anything with a `data_folder`; default: the settings.
        server_url: MCP endpoint to use; None uses the settings' address, or a server started from the page.
    """
    folder = (paths or settings()).data_folder
    files, connection = PanelFiles(folder), ServerConnection(server_url, folder)
    with Panel(title="Model diffing", analytics_enabled=False, fill_width=True) as demo:
        gr.HTML(_masthead(folder))
        with gr.Tabs(elem_id="pages"):
            with gr.Tab("Results", id="results"):
                results.build(files, demo)
            with gr.Tab("Transcripts", id="transcripts"):
                transcripts.build(files, demo)
            with gr.Tab("Runs", id="runs"):
                runs.build(files, demo)
            with gr.Tab("Side by side", id="side-by-side"):
                side_by_side.build(connection, demo)
    demo.connection = connection
    return demo


def launch(
    host: str = "127.0.0.1",
    port: int = 7860,
    open_browser: bool = False,
    server_url: str | None = None,
    prevent_thread_lock: bool = False,
    paths: Paths | None = None,
) -> tuple[Panel, str]:
    """Serve the panel and return it with its address; blocks until interrupted unless `prevent_thread_lock`. Port 0
    takes a free one.

    Prints the address. On the way out a server that the panel started is stopped.
    """
    from diffing_mcp.agents.server_process import free_port

    demo = build_panel(paths, server_url)
    chosen = port or free_port()
    try:
        _, address, _ = demo.launch(
            server_name=host,
            server_port=chosen,
            inbrowser=open_browser,
            prevent_thread_lock=True,
            theme=theme(),
            css=css(),
            quiet=True,
            share=False,
            ssr_mode=False,
            enable_monitoring=False,
            show_error=True,
            footer_links=[],
            pwa=False,
        )
        print(f"The panel is open at {address}", flush=True)  # noqa: T201 - this is what the command is for
        if not prevent_thread_lock:
            demo.block_thread()
    finally:
        if not prevent_thread_lock:
            demo.connection.close()
    return demo, address
