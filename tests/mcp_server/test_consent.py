"""Questions to the user before something is deleted or a long training starts: put where the client says that it puts
them, nowhere else.
"""

from __future__ import annotations

from typing import Any

import pytest
from mcp import Client, MCPError
from mcp.types import ElicitRequestFormParams, ElicitResult, InputRequiredResult

from diffing_mcp.mcp_server import call as calls
from diffing_mcp.mcp_server.serve import build_server, running_http
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.methods.dictionaries.stored import listing
from tests.mcp_server.answers import text_of
from tests.mcp_server.test_dictionary_training import PARAMS, stored

MODES = pytest.mark.parametrize("mode", ["auto", "legacy"])
TRAINING = {**PARAMS, "steps": 20, "wait_seconds": 50}


class User:
    """A user who gives one answer to everything, and what was asked."""

    def __init__(self, action: Any) -> None:
        self.action = action
        self.asked: list[str] = []

    async def __call__(self, context: Any, params: Any) -> ElicitResult:
        assert isinstance(params, ElicitRequestFormParams)
        self.asked.append(params.message)
        return ElicitResult(action=self.action, content={} if self.action == "accept" else None)


@MODES
@pytest.mark.parametrize("over_http", [False, True])
async def test_nothing_is_deleted_that_the_user_wants_to_keep(
    context: ServerContext, mode: str, over_http: bool
) -> None:
    folder = stored("sae-aaaaaaaaaaaa")

    async def delete(server: Any, action: str) -> tuple[User, Any]:
        user = User(action)
        async with Client(server, mode=mode, elicitation_callback=user) as client:
            return user, await client.call_tool("delete_dictionary", {"id": folder.name})

    async def everything(server: Any) -> None:
        for action in ("decline", "cancel"):
            user, result = await delete(server, action)
            assert result.is_error
            assert "declined" in text_of(result)
            assert folder.is_dir()
            assert len(user.asked) == 1
            assert folder.name in user.asked[0]
        user, result = await delete(server, "accept")
        assert not result.is_error, text_of(result)
        assert len(user.asked) == 1
        assert not folder.exists()

    if over_http:
        async with running_http(context) as url:
            await everything(url)
    else:
        await everything(build_server(context))


@MODES
async def test_a_client_without_a_user_is_not_asked(context: ServerContext, mode: str) -> None:
    folder = stored("sae-bbbbbbbbbbbb")
    async with Client(build_server(context), mode=mode) as client:
        assert not (await client.call_tool("delete_dictionary", {"id": folder.name})).is_error
    assert not folder.exists()


async def test_a_long_training_is_asked_about_once(
    context: ServerContext, pair_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "LONG_SECONDS", 0.0)
    server, training = build_server(context), {"pair": pair_name, **TRAINING}
    for action, trained in (("decline", 0), ("accept", 1)):
        user = User(action)
        async with Client(server, elicitation_callback=user) as client:
            result = await client.call_tool("sae_difference", training)
            assert bool(result.is_error) is (action == "decline"), text_of(result)
            assert len(user.asked) == 1
            assert "tokens read" in user.asked[0]
            assert len(listing().dictionaries) == trained
            # What is there already, and what neither trains nor deletes, is not asked about.
            if trained:
                assert not (await client.call_tool("sae_difference", training)).is_error
            await client.call_tool("sae_difference", {**training, "estimate_only": True})
            await client.call_tool("kl", {"pair": pair_name, "max_samples": 4, "max_tokens": 8})
            assert len(user.asked) == 1


def test_a_short_training_is_not_asked_about() -> None:
    estimate = calls.CostEstimate(tokens=1, work=1, forward_passes=1, seconds=10.0, bytes=0)
    assert not calls._is_long(estimate)
    assert calls._is_long(estimate.model_copy(update={"seconds": 300.0}))
    assert calls._is_long(estimate.model_copy(update={"seconds": None}))
    assert calls._is_long(None)


async def test_an_answer_counts_for_the_call_it_was_given_for(context: ServerContext) -> None:
    """By the rules of 2026 the answer comes with another call, which could name something else."""
    kept, named = stored("sae-cccccccccccc"), stored("sae-dddddddddddd")

    async with Client(build_server(context), elicitation_callback=User("accept")) as client:
        first = await client.session.call_tool("delete_dictionary", {"id": named.name}, allow_input_required=True)
        assert isinstance(first, InputRequiredResult)
        assert isinstance(first.input_requests, dict)
        answers: Any = {key: ElicitResult(action="accept", content={}) for key in first.input_requests}
        with pytest.raises(MCPError, match="requestState"):
            await client.session.call_tool(
                "delete_dictionary", {"id": kept.name}, input_responses=answers, request_state=first.request_state
            )
        # Nor does one to a question that was never put.
        again = await client.session.call_tool(
            "delete_dictionary", {"id": kept.name}, input_responses=answers, allow_input_required=True
        )
        assert again.result_type == "input_required"
    assert kept.is_dir()
