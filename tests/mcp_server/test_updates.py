"""Clients that ask to hear of it are told that there are new runs when a job ends; investigations are not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from mcp import Client, MCPError
from mcp.types import ResourceUpdatedNotification

from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.auth import Caller
from diffing_mcp.mcp_server.resources import RUNS
from diffing_mcp.mcp_server.serve import build_server, running_http
from diffing_mcp.mcp_server.server_context import ServerContext
from tests.mcp_server.answers import text_of

pytestmark = pytest.mark.filterwarnings("ignore:resources/:mcp.MCPDeprecationWarning")

SMALL = {"max_samples": 4, "max_tokens": 8, "wait_seconds": 50}


@pytest.fixture(params=["memory", "http"])
async def server(context: ServerContext, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    if request.param == "memory":
        yield build_server(context)
    else:
        async with running_http(context) as url:
            yield url


async def test_a_client_that_listens_hears_of_a_new_run(server: Any, pair_name: str) -> None:
    async with Client(server) as client, client.listen(resource_subscriptions=[RUNS]) as events:
        made = await client.call_tool("kl", {"pair": pair_name, **SMALL})
        assert not made.is_error, text_of(made)
        event = await asyncio.wait_for(anext(aiter(events)), 20)
        assert getattr(event, "uri", None) == RUNS


async def test_a_client_of_2025_that_subscribed_hears_of_a_new_run(server: Any, pair_name: str) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()

    async def hear(message: Any) -> None:
        if isinstance(message, ResourceUpdatedNotification):
            told.put_nowait(str(message.params.uri))

    async with Client(server, mode="legacy", message_handler=hear) as client:
        assert client.server_capabilities.resources is not None
        assert client.server_capabilities.resources.subscribe
        await client.session.subscribe_resource(RUNS)
        await client.call_tool("kl", {"pair": pair_name, **SMALL})
        assert await asyncio.wait_for(told.get(), 20) == RUNS
        await client.session.unsubscribe_resource(RUNS)
        await client.call_tool("kl", {"pair": pair_name, **SMALL, "max_samples": 5})
        # Whatever was sent before this answer has arrived.
        await client.list_tools()
        assert told.empty()


async def test_one_that_went_away_keeps_nobody_from_hearing(server: Any, pair_name: str) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()

    async def hear(message: Any) -> None:
        if isinstance(message, ResourceUpdatedNotification):
            told.put_nowait(str(message.params.uri))

    async with Client(server, mode="legacy") as gone:
        await gone.session.subscribe_resource(RUNS)
    async with Client(server, mode="legacy", message_handler=hear) as client:
        await client.session.subscribe_resource(RUNS)
        await client.call_tool("kl", {"pair": pair_name, **SMALL, "max_samples": 6})
        assert await asyncio.wait_for(told.get(), 20) == RUNS


async def test_an_investigation_does_not_hear_of_runs(context: ServerContext, pair_name: str) -> None:
    new = investigations.create(pair_name)
    server = build_server(context, Caller(investigations.get(new.id)))
    async with Client(server) as client, client.listen(resource_subscriptions=[RUNS]) as events:
        assert not events.honored.resource_subscriptions
    async with Client(server, mode="legacy") as client:
        with pytest.raises(MCPError):
            await client.session.subscribe_resource(RUNS)
