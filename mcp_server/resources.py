"""Resources and prompts for people in hosts: finished runs and investigations as JSON (operators only), and one prompt
that starts an audit.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ResourceNotFoundError
from pydantic import Field

from diffing_mcp.core.errors import DiffingError, UnknownName
from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.auth import Caller
from diffing_mcp.mcp_server.server_context import ServerContext

JSON = "application/json"
REFUSAL = "resources are for operators; tools give everything an investigation may see"


def add_resources(server: MCPServer, context: ServerContext, caller: Callable[[], Caller]) -> None:
    """Register the resources. All of them name real models, so investigations are refused. `caller` says who sent the
    request being served.
    """

    def operator_only() -> None:
        if not caller().operator:
            raise ResourceNotFoundError(REFUSAL)

    @server.resource(
        "diffing://runs",
        name="runs",
        title="Finished runs",
        description="Manifests of all finished runs, newest first.",
        mime_type=JSON,
    )
    def runs() -> str:
        operator_only()
        return json.dumps([manifest.model_dump(mode="json") for manifest in context.store.list()])

    @server.resource(
        "diffing://runs/{run_id}",
        name="run",
        title="A finished run",
        description="Manifest and result of one run.",
        mime_type=JSON,
    )
    def run(run_id: str) -> str:
        operator_only()
        try:
            record = context.store.get(run_id)
        except DiffingError as error:
            raise ResourceNotFoundError(error.message) from None
        return json.dumps({"manifest": record.manifest.model_dump(mode="json"), "result": record.result_json()})

    @server.resource(
        "diffing://investigations/{identifier}",
        name="investigation",
        title="An investigation",
        description="Ledger, calls, hypotheses and finding of one investigation.",
        mime_type=JSON,
    )
    def investigation(identifier: str) -> str:
        operator_only()
        try:
            return investigations.show(identifier).model_dump_json()
        except UnknownName as error:
            raise ResourceNotFoundError(error.message) from None


def add_prompts(server: MCPServer) -> None:
    """Register the prompt."""

    @server.prompt(
        name="audit_pair", title="Audit a pair", description="Find out what a finetune did to a model, step by step."
    )
    def audit_pair(
        pair: Annotated[str, Field(description="Name of the pair, from list_pairs; left out, the agent chooses.")] = "",
    ) -> str:
        which = f"the pair {pair}" if pair else "a pair (call list_pairs to see which there are)"
        return (
            f"Find out what the finetune changed in {which}.\n"
            "1. Call list_pairs, then overview if you have it, and read what stands out. Say so if nothing does.\n"
            "2. Write down at least three explanations with record_hypothesis; one of them is that there is no "
            "meaningful difference.\n"
            "3. For each, think of prompts to which base and finetuned would answer differently if it were true, and "
            "call ask_models. Ask some unrelated prompts too.\n"
            "4. Update the likelihoods with the runs and answers as evidence, and look for what the explanations leave "
            "out.\n"
            "5. Call submit_finding once: topic, behaviour and concrete details, or no_meaningful_difference."
        )
