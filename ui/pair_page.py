"""First page: what is known of one pair, what has not been run on it, and its report."""

from __future__ import annotations

from typing import Any

import gradio as gr
from markupsafe import Markup

from diffing_mcp.core.errors import DiffingError
from diffing_mcp.ui.addresses import link, run_link, show_in_address
from diffing_mcp.ui.connection import ServerConnection
from diffing_mcp.ui.files import PanelFiles
from diffing_mcp.ui.html import alert, div, element, join
from diffing_mcp.ui.jobs import EVERY_SECONDS, OVERVIEW, JobBoard
from diffing_mcp.ui.jobs_view import LIVE, jobs_html
from diffing_mcp.ui.pair_findings import PairFindings, arguments_for, findings_of, full_name, unknown_pair
from diffing_mcp.ui.pair_view import cards_html, claims_html, missing_label, sides_html, verdict_html
from diffing_mcp.ui.saved_evidence import EvidenceFolder
from diffing_mcp.ui.saved_view import saved_html
from diffing_mcp.ui.widgets import acting, pair_choices, picker


def body_html(found: PairFindings) -> Markup:
    """Everything that the runs say, in the order in which one asks."""
    parts = [verdict_html(found), claims_html(found), sides_html(found), cards_html(found, run_link)]
    return join([*parts, saved_html(found.saved)])


def share_html(found: PairFindings) -> Markup:
    """Links that lead on from the pair, and its report."""
    name = found.name
    links = [link("Ask both models", "ask", pair=name), link("All runs", "runs", pair=name)]
    if found.overview is not None or found.saved:
        links += [link("Report", "report", pair=name), link("Save the report", "report", pair=name, download=True)]
    return div(*links, classes="d-share")


def build(files: PanelFiles, connection: ServerConnection, demo: gr.Blocks) -> None:
    """Lay out the page and connect it."""
    board = JobBoard(connection)

    def shown(pair: str | None) -> tuple[Any, ...]:
        if not pair:
            return alert("Pick a pair, or type BASE::FINETUNED.", "warn"), "", gr.skip()
        try:
            found = findings_of(pair, files.runs)
        except DiffingError as error:
            return alert(error.message), "", gr.skip()
        if found.overview is None and (wrong := unknown_pair(pair)) is not None:
            return alert(wrong), "", gr.update(choices=[], value=[])
        startable = [(missing_label(row), row.method) for row in found.missing if not row.reason]
        return body_html(found), share_html(found), gr.update(choices=startable, value=[])

    async def working(pair: str | None) -> tuple[Any, ...]:
        """The live jobs of the pair, how far they are, and whether to look again."""
        try:
            jobs = await board.jobs()
        except DiffingError as error:
            return alert(error.message), [], gr.Timer(active=False)
        mine = [job for job in jobs if job["state"] in LIVE and job.get("pair") == full_name(pair or "")]
        reached = [f"{job['job_id']} {len(job.get('parts') or [])}" for job in mine]
        return jobs_html(mine) if mine else "", reached, gr.Timer(active=bool(mine))

    async def started(pair: str | None, methods: list[str]) -> tuple[Any, ...]:
        if not (pair and methods):
            return alert("Tick what shall be run.", "warn"), *(await working(pair))
        said = [await board.start(method, pair, arguments_for(method, pair, files.runs)) for method in methods]
        return join(said), *(await working(pair))

    def removed(pair: str | None, event: gr.EventData) -> tuple[Any, ...]:
        EvidenceFolder(files.runs).remove(full_name(pair or ""), str(event._data.get("id", "")))
        return shown(pair)

    async def overview(pair: str | None) -> tuple[Any, ...]:
        return await started(pair, [OVERVIEW])

    def opened(request: gr.Request) -> tuple[Any, ...]:
        choices = pair_choices()
        pair = request.query_params.get("pair") or files.newest_pair() or choices[0][1]
        return gr.update(choices=choices, value=pair), *shown(pair)

    with gr.Row(elem_classes="d-controls"):
        pair = picker(
            [],
            label="Pair",
            info="Pick one, or type organism[/variant][@model] or BASE::FINETUNED",
            scale=5,
            elem_id="pair-picker",
        )
        run_overview = gr.Button("Run the overview", variant="primary", scale=0, min_width=170, elem_id="run-overview")
    share = gr.HTML(elem_id="pair-share")
    said = gr.HTML(elem_id="pair-said")
    jobs = gr.HTML(elem_id="pair-jobs")
    body = acting("pair-body", div("Reading the runs of the pair.", classes="d-note"))
    gr.HTML(
        join(
            [
                element("h3", "Not run yet"),
                element(
                    "p", "Costs are work with the default parameters; other ones are under Jobs.", classes="d-note"
                ),
            ]
        )
    )
    missing = gr.CheckboxGroup([], show_label=False, container=False, elem_id="pair-missing")
    run_chosen = gr.Button("Run what is ticked", scale=0, min_width=190, elem_id="run-chosen")
    reached = gr.State([])
    timer = gr.Timer(EVERY_SECONDS, active=False)

    page: list[Any] = [body, share, missing]
    work: list[Any] = [jobs, reached, timer]
    demo.load(opened, None, [pair, *page], api_visibility="private", show_progress="hidden").then(
        working, [pair], work, api_visibility="private", show_progress="hidden"
    )
    pair.input(shown, [pair], page, api_visibility="private").then(
        working, [pair], work, api_visibility="private", show_progress="hidden"
    )
    pair.input(None, [pair], None, js=show_in_address("pair"), api_visibility="private")
    body.acted(removed, [pair], page, api_visibility="private", show_progress="hidden")
    run_overview.click(overview, [pair], [said, *work], api_visibility="private", show_progress_on=[said])
    run_chosen.click(started, [pair, missing], [said, *work], api_visibility="private", show_progress_on=[said])
    timer.tick(working, [pair], work, api_visibility="private", show_progress="hidden")
    # Whenever a job of the pair, or a part of one, ends there is something new to show.
    reached.change(shown, [pair], page, api_visibility="private", show_progress="hidden")
