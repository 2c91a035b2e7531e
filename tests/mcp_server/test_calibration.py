"""Calibrating through the server: a job for operators, and the list of what there is."""

from __future__ import annotations

from pathlib import Path

import pytest
from mcp import Client

from diffing_mcp.core.settings import settings
from diffing_mcp.mcp_server.access_tokens import Grant
from diffing_mcp.mcp_server.auth import OPERATOR, Caller
from diffing_mcp.mcp_server.offer import Offer, Selection
from diffing_mcp.mcp_server.serve import build_server
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.mcp_server.toolset import toolset, toolsets
from diffing_mcp.organisms.nulls import NullRecipe
from tests.mcp_server.answers import answered, good, held


async def test_an_operator_calibrates_a_base(
    context: ServerContext, pair_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFING_CACHE_FOLDER", str(tmp_path / "cache"))
    settings.cache_clear()
    nulls = [NullRecipe(name=f"noise_{amount}", kind="noise", amount=amount) for amount in (0.1, 0.2)]
    monkeypatch.setattr("diffing_mcp.methods.calibration.calibrate.nulls_for", lambda base: nulls)
    few = [("kl", {"max_samples": 4})]
    monkeypatch.setattr("diffing_mcp.methods.calibration.calibrate.default_requests", lambda: few)
    base = pair_name.split("::", maxsplit=1)[0]
    async with held(Client(build_server(context))) as client:
        for measured in (1, 2):  # an equal call goes on
            made = await good(client, "calibrate", {"base": base, "most": 1, "wait_seconds": 50})
            assert made["result"]["kinds"] == {"noise": measured}
        listed = await good(client, "list_calibrations", {})
        assert listed["result"]["calibrations"][0]["base"] == base
        described = await good(client, "describe_calibration", {"base": base})
        assert described["result"]["nulls"] == {"noise": 2}


async def test_what_nobody_can_estimate_is_said_in_a_sentence(context: ServerContext) -> None:
    async with held(Client(build_server(context))) as client:
        answer = await answered(client, "calibrate", {"base": "gpt2", "estimate_only": True})
    assert "What this would cost is not known beforehand." in str(answer.content)


def test_it_trains_so_a_server_that_only_reads_does_not_offer_it() -> None:
    offer = Offer(toolset(), toolsets(), Selection(read_only=True))
    assert "calibrate" not in offer.usable(OPERATOR)
    assert "calibrate" not in Offer(toolset(), toolsets()).usable(Caller(grant=Grant(name="reader", read_only=True)))


def test_investigations_are_not_offered_it() -> None:
    assert all(toolset()[name].operator_only for name in ("calibrate", "describe_calibration", "list_calibrations"))
