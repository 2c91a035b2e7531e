"""The tool facts: it reads a caller's own runs, makes what it needs once, and names the pair as the caller does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from mcp import Client

from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.auth import Caller
from diffing_mcp.mcp_server.serve import build_server
from diffing_mcp.mcp_server.server_context import ServerContext
from tests.mcp_server.answers import answered, good, refused, text_of
from tests.methods.conftest import raise_logits
from tests.word_pairs import save_pair

CAKE = 296
"""Id of the token `cake`."""


@pytest.fixture
def cake_pair(tmp_path: Path) -> str:
    """A pair whose finetuned model says `cake` far more often."""
    save_pair(tmp_path, raise_logits([CAKE], 6.0))
    return f"{tmp_path / 'base'}::{tmp_path / 'finetuned'}"


@pytest.mark.long
async def test_facts_are_read_from_runs_that_are_there_or_made_once(modern: Client, cake_pair: str) -> None:
    made = await good(modern, "facts", {"pair": cake_pair})
    runs = (await good(modern, "list_runs", {"pair": cake_pair}))["result"]["runs"]
    assert {row["method"] for row in runs} == {"contrastive_decoding", "perplexity_difference"}
    assert set(made["result"]["runs"]) == {row["run_id"] for row in runs}
    assert made["result"]["words"] == ["cake"]
    again = await answered(modern, "facts", {"pair": cake_pair, "about": "cakes", "limit": 2})
    assert not again.is_error
    shown = text_of(again)
    assert "<untrusted-" in shown
    found = (again.structured_content or {})["result"]["facts"]
    assert len(found) == 2
    assert all("cake" in fact["claim"] and fact["claim"] in shown for fact in found)
    # What is shown to be pasted is a call that its tool takes.
    for fact in found:
        tool, _, given = fact["check"].removesuffix(")").partition("(")
        named = json.loads("{" + re.sub(r"(^|, )(\w+)=", r'\1"\2": ', given) + "}")
        assert (await good(modern, tool, {**named, "estimate_only": True}))["status"] == "estimate"
    assert "job" not in (again.structured_content or {})  # the runs are there


async def test_an_investigation_reads_its_own_runs_under_its_own_name_for_the_pair(
    context: ServerContext, cake_pair: str
) -> None:
    new = investigations.create(cake_pair, "method", interactions=10, tool_calls=20)
    async with Client(build_server(context, Caller(investigations.get(new.id)))) as client:
        answer = await good(client, "facts", {"pair": new.label, "about": "cake"})
    checks = [fact["check"] for fact in answer["result"]["facts"]]
    assert checks
    assert all(f'(pair="{new.label}", ' in check for check in checks)
    assert set(answer["result"]["runs"]) == investigations.remembered_runs(new.id)


@pytest.mark.parametrize("tools", ["facts,kl,ask_models", "facts,kl"])
async def test_without_texts_and_without_methods_it_says_what_to_ask(
    context: ServerContext, pair_name: str, tools: str
) -> None:
    new = investigations.create(pair_name, tools, interactions=10, tool_calls=20, known_tools=tools.split(","))
    async with Client(build_server(context, Caller(investigations.get(new.id)))) as client:
        said = await refused(client, "facts", {"pair": new.label})
        assert "No run holds texts of both models" in said
        assert ("ask_models shows" in said) == ("ask_models" in tools)
