"""The sweep of behaviours as investigations use it: paid by the question, read by whoever paid."""

from __future__ import annotations

from typing import Any

import pytest
from mcp import Client

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.auth import Caller
from diffing_mcp.mcp_server.serve import build_server
from diffing_mcp.mcp_server.server_context import ServerContext
from tests.mcp_server.answers import good, refused

SWEEP = {"limit": 6, "max_new_tokens": 6}


def blackbox(pair_name: str) -> investigations.Investigation:
    return investigations.get(investigations.create(pair_name, "blackbox", interactions=10, tool_calls=20).id)


async def test_a_sweep_is_paid_once_by_each_who_asks(context: ServerContext, pair_name: str) -> None:
    first, second = blackbox(pair_name), blackbox(pair_name)
    async with Client(build_server(context, Caller(first))) as client:
        call = {"pair": first.label, **SWEEP}
        said = await good(client, "sweep_behaviours", {**call, "estimate_only": True})
        assert said["status"] == "estimate"
        answer = await good(client, "sweep_behaviours", call)
        assert answer["budget"]["interactions_left"] == 4
        again = await good(client, "sweep_behaviours", call)
        assert (again["run_id"], again["budget"]["interactions_left"]) == (answer["run_id"], 4)
        assert "costs 6 model interactions and 4 are left" in await refused(
            client, "sweep_behaviours", {**call, "seed": 1}
        )
        page = await good(client, "view_run", {"run_id": answer["run_id"], "view": "answers", "limit": 2})
        assert page["result"]["data"]["total"] == 6
        assert "Areas: " in await refused(client, "sweep_behaviours", {**call, "domains": ["nothing"]})
    async with Client(build_server(context, Caller(second))) as client:
        assert "no runs yet" in await refused(client, "view_run", {"run_id": answer["run_id"]})
        same = await good(client, "sweep_behaviours", {"pair": second.label, **SWEEP})
        assert (same["run_id"], same["budget"]["interactions_left"]) == (answer["run_id"], 4)


async def test_an_overview_asks_no_questions_for_nothing(
    context: ServerContext, pair_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that named the sweep put its 64 questions to both models without a budget of a single one."""
    asked: list[str] = []

    def note(*given: Any, **named: Any) -> Any:
        asked.append("questions")
        raise InvalidInput("they were asked")

    monkeypatch.setattr("diffing_mcp.mcp_server.tools_overview.run_records", note)
    poor = investigations.get(investigations.create(pair_name, "method", interactions=0, tool_calls=20).id)
    async with Client(build_server(context, Caller(poor))) as client:
        said = await refused(client, "overview", {"pair": poor.label, "methods": ["kl", "sweep_behaviours"]})
    assert asked == []
    assert "sweep_behaviours" in said
    assert "64 model interactions" in said
    async with Client(build_server(context)) as client:
        assert "they were asked" in await refused(
            client, "overview", {"pair": pair_name, "methods": ["sweep_behaviours"]}
        )
