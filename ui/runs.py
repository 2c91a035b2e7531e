"""Page "Runs": the finished runs of the methods, newest first; each row opens its run."""

from __future__ import annotations

from typing import Any

import gradio as gr
from markupsafe import Markup

from diffing_mcp.ui.addresses import link, run_link, show_in_address
from diffing_mcp.ui.files import PanelFiles
from diffing_mcp.ui.html import empty, escape, heading, join, number, seconds_text, table
from diffing_mcp.ui.pair_findings import full_name
from diffing_mcp.ui.run_views import headline_of
from diffing_mcp.ui.widgets import picker

ALL = "all"
ROWS = 50
"""Runs of one page: only theirs are read beyond the manifest."""
_DIGITS = 18
"""Of a place that any list has."""


def listed(files: PanelFiles, pair: str | None, method: str | None, offset: int = 0) -> tuple[Any, Any, Markup]:
    """Both pickers, and a page of the runs that fit them."""
    manifests = files.runs.list()
    pairs = [ALL, *sorted({manifest.pair_name for manifest in manifests})]
    methods = [ALL, *sorted({manifest.method for manifest in manifests})]
    pair = pair if pair in pairs else full_name(pair) if pair else ALL
    method = method or ALL
    chosen = [
        manifest for manifest in manifests if pair in (ALL, manifest.pair_name) and method in (ALL, manifest.method)
    ]
    shown = chosen[max(0, offset) :][:ROWS]
    rows = (
        [
            run_link(manifest.id),
            link(manifest.pair_name, "", pair=manifest.pair_name),
            headline_of(record) if (record := files.run(manifest.id)) else "(deleted in the meantime)",
            escape(manifest.created.strftime("%Y-%m-%d %H:%M")),
            seconds_text(manifest.seconds),
        ]
        for manifest in shown
    )
    if not manifests:
        body = empty(
            "No runs yet",
            "A run is the stored result of one method on one pair. Running it again is a lookup.",
            "diffing run kl --pair cake_bake",
        )
    elif not shown:
        body = empty("No run fits", "There are runs, but none of this method on this pair.")
    else:
        body = join(
            [
                table(["run", "pair", "headline", "made (UTC)", "time"], rows, [4], classes="d-stack"),
                _paging(len(chosen), offset, len(shown), pair, method),
            ]
        )
    return gr.update(choices=pairs, value=pair), gr.update(choices=methods, value=method), body


def _paging(total: int, offset: int, shown: int, pair: str, method: str) -> Markup:
    given = {"pair": None if pair == ALL else pair, "method": None if method == ALL else method}
    parts: list[Any] = [f"{number(offset + 1)}–{number(offset + shown)} of {number(total)}"]
    if offset > 0:
        parts.append(link("newer", "runs", **given, offset=max(0, offset - ROWS)))
    if offset + shown < total:
        parts.append(link("older", "runs", **given, offset=offset + shown))
    return Markup('<p class="d-note">{}</p>').format(join(parts, " · "))


def offset_of(query: Any) -> int:
    """The place in a list that an address names; 0 for what is no number."""
    text = str(query.get("offset", ""))
    return int(text) if text.isdecimal() and len(text) < _DIGITS else 0


def build(files: PanelFiles, demo: gr.Blocks) -> None:
    """Lay out the page and connect it."""

    def opened(request: gr.Request) -> tuple[Any, ...]:
        query = request.query_params
        return listed(files, query.get("pair"), query.get("method"), offset_of(query))

    def relisted(pair: str | None, method: str | None) -> tuple[Any, ...]:
        return listed(files, pair, method)

    gr.HTML(
        heading("Runs", "Stored results of the methods: what stands out, plots, and everything behind them row by row.")
    )
    with gr.Row(elem_classes="d-controls"):
        pair = picker([ALL], value=ALL, label="Pair", scale=3, elem_id="runs-pair")
        method = picker([ALL], value=ALL, label="Method", scale=3, elem_id="runs-method")
        refresh = gr.Button("Refresh", scale=0, min_width=110)
    rows = gr.HTML(elem_id="runs-list")
    whole = [pair, method, rows]
    demo.load(opened, None, whole, api_visibility="private", show_progress="hidden")
    refresh.click(relisted, [pair, method], whole, api_visibility="private")
    in_address = show_in_address("pair", "method", "offset", without=ALL)
    for choice in (pair, method):
        choice.input(relisted, [pair, method], whole, api_visibility="private")
        choice.input(None, [pair, method], None, js=in_address, api_visibility="private")
