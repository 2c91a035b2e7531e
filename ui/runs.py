"""Page "Runs": the finished runs of the methods, each with result, plots, drill-down views and manifest."""

from __future__ import annotations

from typing import Any

import gradio as gr
import plotly.graph_objects as go
from markupsafe import Markup

from diffing_mcp.core.errors import DiffingError
from diffing_mcp.methods.runs.store import RunRecord
from diffing_mcp.ui.files import PanelFiles
from diffing_mcp.ui.html import alert, empty, heading, section
from diffing_mcp.ui.run_views import (
    figures,
    headline_html,
    manifest_html,
    result_html,
    run_row,
    view_choices,
    view_fields,
    view_html,
)

ALL = "all"
_HEADERS = ["run", "method", "pair", "headline", "made (UTC)", "time"]


def find_run(files: PanelFiles, identifier: str | None) -> RunRecord | None:
    """The run, None when there is none of that id (any more)."""
    if not identifier:
        return None
    try:
        return files.runs.get(identifier)
    except DiffingError:
        return None


def _widget(name: str, field: dict[str, Any]) -> Any:
    """The input for one parameter of a view, from its JSON schema."""
    label, told, default = name.replace("_", " "), field.get("description"), field.get("default")
    shape: dict[str, Any] = {"label": label, "info": told, "value": default, "min_width": 180, "interactive": True}
    if "enum" in field:
        return gr.Dropdown(field["enum"], **shape)
    if field.get("type") == "boolean":
        return gr.Checkbox(**{**shape, "value": bool(default)})
    if field.get("type") in ("integer", "number"):
        return gr.Number(
            **shape,
            precision=0 if field["type"] == "integer" else None,
            minimum=field.get("minimum"),
            maximum=field.get("maximum"),
        )
    return gr.Textbox(**{**shape, "value": default if isinstance(default, str) else ""})


def listed(files: PanelFiles, pair: str | None, method: str | None, selected: str | None) -> tuple[Any, ...]:
    """Pickers, list and note: the runs that fit the filters, with the selection kept where it can be."""
    manifests = files.runs.list()
    pairs = [ALL, *sorted({manifest.pair_name for manifest in manifests})]
    methods = [ALL, *sorted({manifest.method for manifest in manifests})]
    pair, method = (pair if pair in pairs else ALL), (method if method in methods else ALL)
    chosen = [
        manifest for manifest in manifests if pair in (ALL, manifest.pair_name) and method in (ALL, manifest.method)
    ]
    rows = [run_row(record) for manifest in chosen if (record := find_run(files, manifest.id)) is not None]
    ids = [row[0] for row in rows]
    selected = selected if selected in ids else (ids[0] if ids else None)
    note = Markup("")
    if not manifests:
        note = empty(
            "No runs yet",
            "A run is the stored result of one method on one pair. Running it again is a lookup.",
            "diffing run kl --pair cake_bake",
        )
    elif not rows:
        note = empty("No run fits", "There are runs, but none of this method on this pair.")
    return (
        gr.update(choices=pairs, value=pair),
        gr.update(choices=methods, value=method),
        gr.update(value=rows, visible=bool(rows)),
        gr.update(choices=[(f"{row[0]}  ·  {row[2]}", row[0]) for row in rows], value=selected, visible=bool(rows)),
        note,
    )


def build(files: PanelFiles, demo: gr.Blocks) -> None:
    """Lay out the page and connect it."""

    def relisted(pair: str | None, method: str | None, selected: str | None) -> tuple[Any, ...]:
        return listed(files, pair, method, selected)

    def clicked(event: gr.SelectData) -> Any:
        row = getattr(event, "row_value", None)
        return gr.update(value=row[0]) if row else gr.skip()

    gr.HTML(
        heading("Runs", "Stored results of the methods: what stands out, plots, and everything behind them row by row.")
    )
    with gr.Row(elem_classes="d-controls"):
        pair = gr.Dropdown([ALL], value=ALL, label="Pair", scale=3, elem_id="runs-pair")
        method = gr.Dropdown([ALL], value=ALL, label="Method", scale=3, elem_id="runs-method")
        refresh = gr.Button("Refresh", scale=0, min_width=110)
    note = gr.HTML(elem_id="runs-note")
    table = gr.Dataframe(
        headers=_HEADERS,
        datatype="str",
        interactive=False,
        wrap=True,
        max_height=260,
        show_label=False,
        elem_id="runs-list",
        column_widths=["19%", "14%", "20%", "29%", "10%", "8%"],
        buttons=[],
        visible=False,
    )
    run = gr.Dropdown([], label="Run (or click a row above)", elem_id="runs-run", visible=False)

    whole = [pair, method, table, run, note]
    demo.load(relisted, [pair, method, run], whole, api_visibility="private", show_progress="hidden")
    refresh.click(relisted, [pair, method, run], whole, api_visibility="private")
    for picker in (pair, method):
        picker.input(relisted, [pair, method, run], whole, api_visibility="private")
    table.select(clicked, None, [run], api_visibility="private", show_progress="hidden")

    # The tabs stand outside of what is drawn anew for each run: drawn anew, they would come without a selected one.
    with gr.Column(visible=False) as detail:
        headline = gr.HTML(elem_id="run-headline")

        @gr.render(inputs=[run])
        def plots(identifier: str | None) -> None:
            if (record := find_run(files, identifier)) is not None:
                _figures(record)

        with gr.Tabs():
            with gr.Tab("Result"):
                result = gr.HTML(elem_id="run-result")
            with gr.Tab("Drill down"):
                view = gr.Dropdown([], label="View", elem_id="run-view", interactive=True)

                @gr.render(inputs=[run, view])
                def form(identifier: str | None, choice: str | None) -> None:
                    record = find_run(files, identifier)
                    if record is not None and choice in view_choices(record):
                        _view_form(files, record, str(choice))

            with gr.Tab("Manifest"):
                manifest = gr.HTML(elem_id="run-manifest")

    def chosen(identifier: str | None, choice: str | None) -> tuple[Any, ...]:
        record = find_run(files, identifier)
        if record is None:
            return gr.update(visible=False), Markup(""), Markup(""), gr.update(choices=[], value=None), Markup("")
        choices = view_choices(record)
        choice = choice if choice in choices else (choices[0] if choices else None)
        return (
            gr.update(visible=True),
            headline_html(record),
            result_html(record),
            gr.update(choices=choices, value=choice),
            manifest_html(record),
        )

    run.change(
        chosen,
        [run, view],
        [detail, headline, result, view, manifest],
        api_visibility="private",
        show_progress="hidden",
    )

    def run_result(run: str) -> dict[str, Any]:
        """Manifest and result of one run as JSON."""
        record = find_run(files, run)
        if record is None:
            raise gr.Error(f"There is no run {run!r}.")
        return {"manifest": record.manifest.model_dump(mode="json"), "result": record.result_json()}

    gr.api(run_result, api_name="run")


def _figures(record: RunRecord) -> None:
    """The declared plots, two in a row."""
    built = figures(record)
    for start in range(0, len(built), 2):
        with gr.Row(equal_height=False):
            for title, remark, figure in built[start : start + 2]:
                with gr.Column(min_width=380):
                    gr.HTML(section(title, note=remark))
                    if isinstance(figure, Markup):
                        gr.HTML(figure)
                    else:
                        gr.Plot(go.Figure(figure, skip_invalid=True), show_label=False, container=False)


def _view_form(files: PanelFiles, found: RunRecord, choice: str) -> None:
    """The parameters of a view or stored table, and its rows page by page."""
    identifier = found.id
    fields = view_fields(found, choice)
    names = list(fields)

    def page(offset: int, *values: Any) -> tuple[Any, ...]:
        current = find_run(files, identifier)
        if current is None:
            return (
                alert("This run was deleted in the meantime.", "warn"),
                0,
                gr.update(interactive=False),
                gr.update(interactive=False),
                None,
            )
        markup, following, limit = view_html(current, choice, dict(zip(names, values, strict=True)), offset)
        return (
            markup,
            offset,
            gr.update(interactive=offset > 0),
            gr.update(interactive=following is not None),
            (limit, following),
        )

    def first(*values: Any) -> tuple[Any, ...]:
        return page(0, *values)

    def previous(offset: int, step: tuple[int, int | None] | None, *values: Any) -> tuple[Any, ...]:
        return page(max(0, offset - (step[0] if step else 0)), *values)

    def following(offset: int, step: tuple[int, int | None] | None, *values: Any) -> tuple[Any, ...]:
        return page(step[1] if step and step[1] is not None else offset, *values)

    markup, next_offset, limit = view_html(
        found, choice, {name: field.get("default") for name, field in fields.items()}, 0
    )
    widgets = []
    if fields:
        with gr.Row():
            widgets = [_widget(name, field) for name, field in fields.items()]
    with gr.Row():
        show = gr.Button("Show", variant="primary", scale=0, min_width=120, visible=bool(fields))
        back = gr.Button("Previous", scale=0, min_width=120, interactive=False)
        forth = gr.Button("Next", scale=0, min_width=120, interactive=next_offset is not None)
    offset, step = gr.State(0), gr.State((limit, next_offset))
    shown = gr.HTML(markup, elem_id="run-view-page")
    outputs = [shown, offset, back, forth, step]
    show.click(first, widgets, outputs, api_visibility="private")
    back.click(previous, [offset, step, *widgets], outputs, api_visibility="private")
    forth.click(following, [offset, step, *widgets], outputs, api_visibility="private")
