"""Resources for people in hosts: finished runs and investigations as JSON, for operators only."""

from __future__ import annotations

import json
from collections.abc import Callable

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ResourceNotFoundError

from diffing_mcp.core.errors import DiffingError, UnknownName
from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.app_data import figures_of
from diffing_mcp.mcp_server.auth import Caller
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.methods.runs.files import RunRecord

JSON = "application/json"
RUNS = "diffing://runs"
REFUSAL = "resources are for operators; tools give everything an investigation may see"


def run_uri(run_id: str) -> str:
    """The address of a finished run."""
    return f"{RUNS}/{run_id}"


def add_resources(server: MCPServer, context: ServerContext, caller: Callable[[], Caller]) -> None:
    """Register the resources. All of them name real models, so investigations are refused. `caller` says who sent the
    request being served.
    """

    def operator_only(tool: str) -> None:
        """Whoever may read a resource may use the tool that shows the same."""
        if not caller().operator:
            raise ResourceNotFoundError(REFUSAL)
        if not caller().may_use(tool):
            raise ResourceNotFoundError(f"this token may not use {tool}, so it may not read this")

    def run_of(run_id: str) -> RunRecord:
        operator_only("view_run")
        try:
            return context.store.get(run_id)
        except DiffingError as error:
            raise ResourceNotFoundError(error.message) from None

    @server.resource(
        RUNS,
        name="runs",
        title="Finished runs",
        description="Manifests of all finished runs, newest first.",
        mime_type=JSON,
    )
    def runs() -> str:
        operator_only("list_runs")
        return json.dumps([manifest.model_dump(mode="json") for manifest in context.store.list()])

    @server.resource(
        run_uri("{run_id}"),
        name="run",
        title="A finished run",
        description="Manifest and result of one run.",
        mime_type=JSON,
    )
    def run(run_id: str) -> str:
        record = run_of(run_id)
        return json.dumps({"manifest": record.manifest.model_dump(mode="json"), "result": record.result_json()})

    @server.resource(
        run_uri("{run_id}") + "/figures/{figure}.png",
        name="figure",
        title="A figure of a run",
        description="A plot of a finished run as a picture.",
        mime_type="image/png",
    )
    def figure(run_id: str, figure: str) -> bytes:
        from diffing_mcp.mcp_server.plot_images import png

        record = run_of(run_id)
        named = figures_of(record)
        picture = png(named[figure].build(record)) if figure in named else b""
        if not picture:
            raise ResourceNotFoundError(f"{run_id} has no figure {figure!r}. It has: {', '.join(named) or 'none'}.")
        return picture

    @server.resource(
        "diffing://investigations/{identifier}",
        name="investigation",
        title="An investigation",
        description="Ledger, calls, hypotheses and finding of one investigation.",
        mime_type=JSON,
    )
    def investigation(identifier: str) -> str:
        operator_only("close_investigation")
        try:
            return investigations.show(identifier).model_dump_json()
        except UnknownName as error:
            raise ResourceNotFoundError(error.message) from None
