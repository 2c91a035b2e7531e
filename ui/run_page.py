"""Page of one run (`run?run=ID`): what it found with its evidence first, plots, numbers, drill-down views, manifest."""

from __future__ import annotations

from typing import Any

import gradio as gr
import plotly.graph_objects as go
from markupsafe import Markup

from diffing_mcp.methods.runs.store import RunRecord
from diffing_mcp.ui.addresses import address, link, show_in_address
from diffing_mcp.ui.evidence import evidence_html, numbers_html
from diffing_mcp.ui.examples_tab import build_tab
from diffing_mcp.ui.files import PanelFiles
from diffing_mcp.ui.html import alert, div, element, empty, join, section
from diffing_mcp.ui.parameters import entered, typed
from diffing_mcp.ui.run_views import (
    figures,
    headline_html,
    manifest_html,
    view_choices,
    view_fields,
    view_html,
)
from diffing_mcp.ui.widgets import DRAWING, picker, widget


def share_html(record: RunRecord) -> Markup:
    """Links to the pair, to the run's stored tables as files, and to its result as JSON."""
    files = [link("result.json", "result.json", run=record.id)]
    for name in record.manifest.tables:
        files += [link(f"{name}.{kind}", f"table.{kind}", run=record.id, table=name) for kind in ("csv", "parquet")]
    pair = record.manifest.pair_name
    return div(
        element("span", "Pair ", link(pair, "", pair=pair)),
        element("span", "Link to this run ", element("code", address("run", run=record.id))),
        element("span", "Files: ", join(files, " · ")),
        classes="d-share",
    )


def build(files: PanelFiles, demo: gr.Blocks) -> None:
    """Lay out the page and connect it."""
    headline = gr.HTML(elem_id="run-headline")
    run = gr.State("")
    wanted = gr.State({})

    # The tabs stand outside of what is drawn for the run: drawn anew, they would come without a selected one.
    with gr.Column(visible=False) as detail:
        with gr.Tabs() as tabs:
            with gr.Tab("Result", id="result"):
                evidence = gr.HTML(elem_id="run-evidence")

                @gr.render(inputs=[run], **DRAWING)
                def plots(identifier: str | None) -> None:
                    if (record := files.run(identifier)) is not None:
                        _figures(record)

                numbers = gr.HTML(elem_id="run-numbers")
            with gr.Tab("Drill down", id="views"):
                view = picker([], label="View", elem_id="run-view", interactive=True)

                @gr.render(inputs=[run, view, wanted], **DRAWING)
                def form(identifier: str | None, choice: str | None, given: dict[str, str]) -> None:
                    record = files.run(identifier)
                    if record is not None and choice in view_choices(record):
                        _view_form(files, record, str(choice), given if given.get("view") == choice else {})

            with gr.Tab("Examples", id="examples", visible=False) as examples:
                build_tab(files, run)
            with gr.Tab("Manifest", id="manifest"):
                manifest = gr.HTML(elem_id="run-manifest")
        share = gr.HTML(elem_id="run-share")

    def opened(request: gr.Request) -> tuple[Any, ...]:
        query = dict(request.query_params)
        record = files.run(query.get("run"))
        if record is None:
            asked = query.get("run")
            said = f"There is no run {asked!r} here (any more)." if asked else "An address names a run: run?run=ID."
            gone = join([empty("No such run", said), element("p", link("All runs", "runs"), classes="d-note")])
            return gone, "", {}, gr.update(visible=False), *[gr.skip()] * 7
        choices = view_choices(record)
        choice = query.get("view")
        choice = choice if choice in choices else (choices[0] if choices else None)
        return (
            headline_html(record),
            record.id,
            query,
            gr.update(visible=True),
            gr.update(selected="views" if query.get("view") in choices else "result"),
            evidence_html(record),
            numbers_html(record),
            gr.update(choices=choices, value=choice),
            gr.update(visible=bool(record.manifest.examples)),
            manifest_html(record),
            share_html(record),
        )

    demo.load(
        opened,
        None,
        [headline, run, wanted, detail, tabs, evidence, numbers, view, examples, manifest, share],
        api_visibility="private",
        show_progress="hidden",
    )
    view.input(None, [view], None, js=show_in_address("view"), api_visibility="private")

    def run_result(run: str) -> dict[str, Any]:
        """Manifest and result of one run as JSON."""
        record = files.run(run)
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


def _view_form(files: PanelFiles, found: RunRecord, choice: str, given: dict[str, str]) -> None:
    """The parameters of a view or stored table, and its rows page by page; `given` are values of the address."""
    identifier = found.id
    fields = {
        name: {**field, "default": typed(field, given[name])} if name in given else field
        for name, field in view_fields(found, choice).items()
    }

    def page(offset: int, *values: Any) -> tuple[Any, ...]:
        current = files.run(identifier)
        if current is None:
            return (
                alert("This run was deleted in the meantime.", "warn"),
                0,
                gr.update(interactive=False),
                gr.update(interactive=False),
                None,
            )
        markup, following, limit = view_html(current, choice, entered(fields, values), offset)
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
            widgets = [widget(name, field) for name, field in fields.items()]
    with gr.Row():
        show = gr.Button("Show", variant="primary", scale=0, min_width=120, visible=bool(fields))
        back = gr.Button("Previous", scale=0, min_width=120, interactive=False)
        forth = gr.Button("Next", scale=0, min_width=120, interactive=next_offset is not None)
    offset, step = gr.State(0), gr.State((limit, next_offset))
    shown = gr.HTML(markup, elem_id="run-view-page")
    outputs = [shown, offset, back, forth, step]
    show.click(first, widgets, outputs, api_visibility="private")
    show.click(None, widgets, None, js=show_in_address(*fields), api_visibility="private")
    back.click(previous, [offset, step, *widgets], outputs, api_visibility="private")
    forth.click(following, [offset, step, *widgets], outputs, api_visibility="private")
