"""The panel: its pages over the data folder and the MCP server. `build_panel` lays it out, `launch` serves it."""

from __future__ import annotations

import os

# Before Gradio is imported: it reads this once, and nothing here may leave the machine.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

import gradio as gr
from markupsafe import Markup

from diffing_mcp.core.errors import DiffingError
from diffing_mcp.core.settings import settings
from diffing_mcp.ui import ask, detection, jobs, pair_page, results, run_page, runs, steer, transcripts
from diffing_mcp.ui.addresses import KEEP_PAIR, PAGES, navigation
from diffing_mcp.ui.connection import ServerConnection
from diffing_mcp.ui.downloads import add_downloads
from diffing_mcp.ui.files import PanelFiles
from diffing_mcp.ui.html import div, element
from diffing_mcp.ui.inspect_viewer import add_viewer
from diffing_mcp.ui.pair_findings import findings_of
from diffing_mcp.ui.theme import BASE, FINETUNED, MONO, SANS, css
from diffing_mcp.ui.widgets import pair_choices


class Paths(Protocol):
    """The part of the settings that the panel reads."""

    @property
    def data_folder(self) -> Path:
        """Folder that holds `runs` and `evaluations`."""


class Panel(gr.Blocks):
    """The blocks, with the connection to the MCP server and the files that its pages use."""

    connection: ServerConnection
    files: PanelFiles


def _masthead(data_folder: Path, page: str) -> Markup:
    legend = Markup(
        f"<span class='d-legend'><span><i style='background:{BASE}'></i>base</span><span><i "
        f"style='background:{FINETUNED}'></i>finetuned</span></span>"
    )
    return div(
        element("h1", "Model diffing"),
        navigation(page),
        legend,
        element("span", _short(data_folder), classes="d-where", title=f"The data folder: {data_folder}"),
        classes="d-masthead",
    )


def _short(folder: Path) -> str:
    """A path with `~` for the home folder."""
    return f"~/{folder.relative_to(Path.home())}" if folder.is_relative_to(Path.home()) else str(folder)


def build_panel(paths: Paths | None = None, server_url: str | None = None) -> Panel:
    """The panel as Gradio blocks.

    Args:
        paths: anything with a `data_folder`; default: the settings.
        server_url: MCP endpoint to use; None uses the one at the settings' address when it serves this data folder,
            or one that is started when it is first needed.
    """
    folder = (paths or settings()).data_folder
    files, connection = PanelFiles(folder), ServerConnection(server_url, folder)
    pages: dict[str, Callable[[gr.Blocks], None]] = {
        "": partial(pair_page.build, files, connection),
        "runs": partial(runs.build, files),
        "jobs": partial(jobs.build, files, connection),
        "ask": partial(ask.build, files, connection),
        "steer": partial(steer.build, files, connection),
        "results": partial(results.build, files),
        "transcripts": partial(transcripts.build, files),
        "detection": detection.build,
        "run": partial(run_page.build, files),
    }
    demo = Panel(title="Model diffing", analytics_enabled=False, fill_width=True)
    for path, build in pages.items():
        with demo if path == "" else demo.route(PAGES.get(path, "Run"), path):
            gr.Navbar(visible=False)  # ours keeps the pair and marks the page for screen readers
            gr.HTML(_masthead(folder, "runs" if path == "run" else path))
            build(demo)
            demo.load(None, None, None, js=KEEP_PAIR, api_visibility="private")
    demo.connection, demo.files = connection, files
    return demo


def launch(
    host: str = "127.0.0.1",
    port: int = 7860,
    open_browser: bool = False,
    server_url: str | None = None,
    prevent_thread_lock: bool = False,
    paths: Paths | None = None,
) -> tuple[Panel, str]:
    """Serve the panel and return it with its address; unless `prevent_thread_lock`, says when it is ready and blocks
    until interrupted. Port 0 takes a free one. On the way out a server that the panel started is stopped.
    """
    from diffing_mcp.agents.server_process import free_port

    demo = build_panel(paths, server_url)
    try:
        app, address, _ = demo.launch(
            server_name=host,
            server_port=port or free_port(),
            inbrowser=open_browser,
            prevent_thread_lock=True,
            theme=_theme(),
            css=css(),
            quiet=True,
            share=False,
            ssr_mode=False,
            enable_monitoring=False,
            show_error=True,
            footer_links=[],
            pwa=False,
        )
        add_downloads(app, demo.files)
        add_viewer(app, demo.files)
        threading.Thread(target=_warm_up, args=(demo.files,), name="warm-up", daemon=True).start()
        if not prevent_thread_lock:
            print("The panel is ready.", flush=True)  # noqa: T201 - this is what the command is for
            demo.block_thread()
    finally:
        if not prevent_thread_lock:
            demo.connection.close()
    return demo, address


def _warm_up(files: PanelFiles) -> None:
    """Do once what the first page does: what it imports and reads takes seconds the first time."""
    pair_choices()
    if (pair := files.newest_pair()) is not None:
        with suppress(DiffingError):  # the page itself will say it
            findings_of(pair, files.runs)


def _theme() -> gr.themes.Base:
    return gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        secondary_hue=gr.themes.colors.slate,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=SANS,
        font_mono=MONO,
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_label_text_size="*text_sm",
        block_shadow="none",
        block_border_width="1px",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
        # Gradio's own greys for these are 2.6:1 on white, too faint to read.
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_400",
    )
