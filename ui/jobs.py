"""Page "Jobs": any method started from its parameters, and what the model server works on. Jobs belong to the server,
so closing the page loses nothing.
"""

from __future__ import annotations

from typing import Any

import gradio as gr
from markupsafe import Markup

from diffing_mcp.core.errors import DiffingError
from diffing_mcp.methods.overview.plan import DEFAULT_BUDGET
from diffing_mcp.methods.registry import all_methods
from diffing_mcp.ui.addresses import run_link, show_in_address
from diffing_mcp.ui.connection import ServerConnection
from diffing_mcp.ui.files import PanelFiles
from diffing_mcp.ui.html import alert, empty, heading, join
from diffing_mcp.ui.jobs_view import LIVE, jobs_html
from diffing_mcp.ui.pair_findings import arguments_for
from diffing_mcp.ui.parameters import entered, fields_of, typed
from diffing_mcp.ui.widgets import DRAWING, pair_choices, picker, widget

OVERVIEW = "overview"
EVERY_SECONDS = 2

_OVERVIEW_FIELDS: dict[str, dict[str, Any]] = {
    "budget": {
        "type": "integer",
        "minimum": 500,
        "default": DEFAULT_BUDGET,
        "description": "Tokens that the models may read for it, both sides together.",
    }
}


def method_fields(method: str | None) -> dict[str, dict[str, Any]]:
    """The parameters of a method (or of the overview) by name, as JSON schemas; none for what is no method."""
    if method == OVERVIEW:
        return _OVERVIEW_FIELDS
    known = all_methods().get(method or "")
    return fields_of(known.Params.model_json_schema()) if known else {}


class JobBoard:
    """The jobs of the panel's server, and starting and stopping them. Outcomes, errors too, are something to show."""

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection
        self._errors: dict[str, str] = {}

    async def jobs(self) -> list[dict[str, Any]]:
        """All jobs of the server, the newest first; none when no server runs: looking starts none."""
        found = await self.connection.jobs()
        for job in found:
            if job["state"] == "failed" and job["job_id"] not in self._errors:
                self._errors[job["job_id"]] = await self._error(job["job_id"])
        return [{**job, "error": self._errors.get(job["job_id"], "")} for job in reversed(found)]

    async def _error(self, identifier: str) -> str:
        try:
            await self.connection.begin("get_job", {"job_id": identifier, "wait_seconds": 0})
        except DiffingError as error:
            return error.message
        return ""

    async def start(self, method: str, pair: str, arguments: dict[str, Any]) -> Markup:
        """Start a method on a pair; says what came of it."""
        try:
            answer = await self.connection.begin(method, {"pair": pair, **arguments, "wait_seconds": 0})
        except DiffingError as error:
            return alert(f"{method}: {error.message}")
        if answer.get("status") == "running":
            return alert(f"{method} is started as {answer['job']['job_id']}.", "good")
        run = answer.get("run_id")
        said = f"{method} had been run with these parameters before"
        return alert(join([said, ": ", run_link(run)] if run else [said, "."]), "good")

    async def cancel(self, identifier: str) -> Markup:
        """Stop a job at its next batch."""
        try:
            await self.connection.begin("cancel_job", {"job_id": identifier})
        except DiffingError as error:
            return alert(error.message)
        return alert(f"{identifier} stops at its next batch; what is finished is kept.", "warn")


def live_ids(jobs: list[dict[str, Any]]) -> list[str]:
    """Ids of the jobs that are not over."""
    return [job["job_id"] for job in jobs if job["state"] in LIVE]


def build(files: PanelFiles, connection: ServerConnection, demo: gr.Blocks) -> None:
    """Lay out the page and connect it."""
    board = JobBoard(connection)
    gr.HTML(
        heading(
            "Jobs",
            "Run any method on a pair. A job goes on when this page is closed; its run is then under Runs.",
        )
    )
    with gr.Row(elem_classes="d-controls"):
        pair = picker([], label="Pair", info="Pick one or type BASE::FINETUNED", elem_id="job-pair")
        method = picker(
            [(OVERVIEW, OVERVIEW), *((f"{each.title} ({name})", name) for name, each in all_methods().items())],
            label="Method",
            info="The overview runs the cheap ones together",
            elem_id="job-method",
        )
    given = gr.State({})
    said = gr.HTML(elem_id="job-said")

    @gr.render(inputs=[method, given], **DRAWING)
    def form(name: str | None, values: dict[str, Any]) -> None:
        fields = {
            key: {**field, "default": values.get(key, field.get("default"))}
            for key, field in method_fields(name).items()
        }
        start = gr.Button("Start", variant="primary", scale=0, min_width=140, elem_id="job-start")
        with gr.Accordion(f"Parameters of {name}", open=bool(values)), gr.Row():
            widgets = [widget(key, field) for key, field in fields.items()]

        async def started(pair: str | None, *entries: Any) -> tuple[Any, ...]:
            if not (pair and name):
                return alert("Choose a pair and a method.", "warn"), *(await board_now())
            return await board.start(name, pair, entered(fields, entries, values)), *(await board_now())

        start.click(started, [pair, *widgets], [said, listed, live, timer], api_visibility="private")

    with gr.Row(elem_classes="d-controls"):
        gr.HTML(heading("On the model server"))
        refresh = gr.Button("Refresh", scale=0, min_width=110)
    listed = gr.HTML(elem_id="jobs-list")
    live = gr.State([])
    timer = gr.Timer(EVERY_SECONDS, active=False)

    async def board_now() -> tuple[Any, ...]:
        try:
            jobs = await board.jobs()
        except DiffingError as error:
            return alert(error.message), [], gr.Timer(active=False)
        nothing = empty("Nothing is being worked on", "Jobs end with the server; their runs are kept under Runs.")
        return jobs_html(jobs) if jobs else nothing, live_ids(jobs), gr.Timer(active=bool(live_ids(jobs)))

    @gr.render(inputs=[live], **DRAWING)
    def cancelling(identifiers: list[str]) -> None:
        with gr.Row():
            for identifier in identifiers:

                async def stop(identifier: str = identifier) -> tuple[Any, ...]:
                    return await board.cancel(identifier), *(await board_now())

                gr.Button(f"Cancel {identifier}", size="sm", scale=0, min_width=200).click(
                    stop, None, [said, listed, live, timer], api_visibility="private"
                )

    def opened(request: gr.Request) -> tuple[Any, ...]:
        query = dict(request.query_params)
        wanted, name = query.get("pair"), query.get("method") or OVERVIEW
        fields = method_fields(name)
        values = {key: typed(fields[key], text) for key, text in query.items() if key in fields}
        return (
            gr.update(choices=pair_choices(), value=wanted or files.newest_pair()),
            name,
            {**(arguments_for(name, wanted, files.runs) if wanted else {}), **values},
        )

    demo.load(opened, None, [pair, method, given], api_visibility="private", show_progress="hidden")
    for event in (demo.load, refresh.click, timer.tick):
        event(board_now, None, [listed, live, timer], api_visibility="private", show_progress="hidden")
    for choice in (pair, method):
        choice.input(None, [pair, method], None, js=show_in_address("pair", "method"), api_visibility="private")
