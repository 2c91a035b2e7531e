"""What an investigation is confined to: its tools, its pair, its budgets, its own runs and jobs."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator

import pytest
from mcp import Client

from diffing_mcp.core.wire import RUN
from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.auth import Caller
from diffing_mcp.mcp_server.serve import build_server
from diffing_mcp.mcp_server.server_context import ServerContext
from tests.mcp_server.answers import answered, good, held, refused, text_of

SMALL = {"max_samples": 24, "max_tokens": 12}


@pytest.fixture(params=["auto", "legacy"])
async def confined(
    request: pytest.FixtureRequest, context: ServerContext, pair_name: str
) -> AsyncIterator[tuple[Client, str]]:
    """A client of an investigation, in either era, and the pair's label."""
    new = investigations.create(pair_name, "method", interactions=10, tool_calls=20)
    caller = Caller(investigations.get(new.id))
    async with held(Client(build_server(context, caller), mode=request.param)) as client:
        yield client, new.label


async def test_more_of_long_answers_costs_nothing(confined: tuple[Client, str]) -> None:
    client, label = confined
    arguments = {
        "pair": label,
        "prompts": ["a"] * 2,
        "samples": 4,
        "max_new_tokens": 60,
        "raw_text": True,
        "temperature": 1.5,
        "max_characters": 500,
    }
    short = await good(client, "ask_models", arguments)
    assert short["result"]["next_offset"] < short["result"]["total"] == 8
    long = await good(client, "ask_models", {**arguments, "max_characters": 100_000})
    assert (long["result"]["cut"], long["result"]["next_offset"]) == (0, None)
    assert long["budget"]["interactions_left"] == short["budget"]["interactions_left"] == 2


async def test_every_answer_is_reached_whole_page_by_page(confined: tuple[Client, str]) -> None:
    """Ten prompts at the default length: each page is short, and nothing is asked again."""
    client, label = confined
    prompts = [f"{number} is" for number in range(10)]
    asked = {"pair": label, "prompts": prompts, "raw_text": True, "temperature": 1.5, "wait_seconds": 50}
    whole = await good(client, "ask_models", {**asked, "max_characters": 100_000})
    offset, seen = 0, []
    while offset is not None:
        answer = await answered(client, "ask_models", {**asked, "offset": offset})
        page = answer.structured_content or {}
        assert len(text_of(answer)) <= 7000
        assert page["result"]["cut"] == 0
        assert page["result"]["rates"] == whole["result"]["rates"]
        assert page["budget"]["interactions_left"] == whole["budget"]["interactions_left"] == 0
        seen += page["result"]["answers"]
        offset = page["result"]["next_offset"]
        assert offset is None or f"offset={offset} shows the next" in text_of(answer)
    assert seen == whole["result"]["answers"]
    assert [row["prompt"] for row in seen] == prompts


async def test_budgets_are_told_and_kept(confined: tuple[Client, str]) -> None:
    client, label = confined
    described = await good(client, "describe_pair", {"pair": label})
    assert described["budget"] == {
        "interactions_left": 10,
        "interactions_total": 10,
        "tool_calls_left": 20,
        "tool_calls_total": 20,
    }
    ask = {"pair": label, "max_new_tokens": 2, "raw_text": True}
    first = await good(client, "ask_models", {**ask, "prompts": ["a", "b"], "samples": 3})
    assert (first["budget"]["interactions_left"], first["budget"]["tool_calls_left"]) == (4, 19)
    said = await refused(client, "ask_models", {**ask, "prompts": ["a", "b", "c"], "samples": 2})
    assert "costs 6 model interactions and 4 are left" in said
    assert "budget left: 4/10 model interactions, 19/20 tool calls" in said
    same = await good(client, "ask_models", {**ask, "prompts": ["a", "b"], "samples": 3})
    assert (same["budget"]["interactions_left"], same["budget"]["tool_calls_left"]) == (4, 18)
    failed = await refused(client, "ask_models", {**ask, "prompts": ["word " * 3000]})
    assert "budget left: 4/10 model interactions, 18/20 tool calls" in failed
    await good(client, "compare_text", {"pair": label, "text": "some plain words here"})
    assert (await good(client, "list_hypotheses", {}))["budget"]["interactions_left"] == 3


async def test_without_tool_calls_only_free_tools_work(context: ServerContext, pair_name: str) -> None:
    new = investigations.create(pair_name, "method", interactions=5, tool_calls=1)
    async with Client(build_server(context, Caller(investigations.get(new.id)))) as client:
        await good(client, "compare_text", {"pair": new.label, "text": "some plain words here"})
        assert "submit_finding" in await refused(
            client, "compare_text", {"pair": new.label, "text": "other plain words here"}
        )
        await good(client, "record_hypothesis", {"statement": "x", "likelihood": 0.5})
        await good(client, "submit_finding", {"verdict": "no_meaningful_difference", "statement": "nothing"})


async def test_a_ledger_that_cannot_be_written_takes_no_answer_with_it(
    confined: tuple[Client, str], context: ServerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(reservation: str) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(context.ledger, "refund", full)
    client, label = confined
    await good(client, "compare_text", {"pair": label, "text": "some plain words here"})
    assert "There is one pair here" in await refused(client, "compare_text", {"pair": "other", "text": "x y z"})


async def test_an_investigation_ends_with_its_finding_and_is_recorded(confined: tuple[Client, str]) -> None:
    client, label = confined
    await good(client, "compare_text", {"pair": label, "text": "some plain words here"})
    await refused(client, "compare_text", {"pair": "other", "text": "x"})
    await good(
        client,
        "record_hypothesis",
        {"statement": "about cakes", "likelihood": 0.4, "evidence": [{"source": "prompt", "note": "n"}]},
    )
    done = await good(client, "submit_finding", {"verdict": "difference", "statement": "cakes", "likelihood": 0.9})
    assert done["result"]["verdict"] == "difference"
    assert "once" in await refused(client, "submit_finding", {"verdict": "difference", "statement": "again"})
    assert "over" in await refused(client, "compare_text", {"pair": label, "text": "some"})
    record = investigations.show(label)
    assert [call.tool for call in record.calls][:4] == [
        "compare_text",
        "compare_text",
        "record_hypothesis",
        "submit_finding",
    ]
    assert [call.outcome for call in record.calls][:4] == ["completed", "error", "completed", "completed"]
    assert record.calls[0].result["result"]["tokens"]
    assert record.calls[0].arguments["text"] == "some plain words here"
    assert record.hypotheses[0].evidence[0].source == "prompt"
    assert record.findings[0].statement == "cakes"


async def test_a_token_shows_its_tools_only(context: ServerContext, pair_name: str) -> None:
    for tools, hidden, shown in (
        ("blackbox", "kl", "ask_models"),
        ("kl", "ask_models", "kl"),
        ("method", "unload_pair", "overview"),
    ):
        new = investigations.create(pair_name, tools, known_tools=["kl"])
        async with Client(build_server(context, Caller(investigations.get(new.id)))) as client:
            names = [tool.name for tool in (await client.list_tools()).tools]
            assert shown in names
            assert hidden not in names
            assert "submit_finding" in names
            assert "there is no tool" in await refused(client, hidden, {"pair": new.label})


async def test_investigations_cannot_reach_each_others_jobs_and_runs(context: ServerContext, pair_name: str) -> None:
    first, second = (investigations.create(pair_name) for _ in range(2))
    async with Client(build_server(context, Caller(investigations.get(first.id)))) as client:
        mine = await good(client, "kl", {"pair": first.label, **SMALL})
        asked = await good(
            client, "ask_models", {"pair": first.label, "prompts": ["a"], "max_new_tokens": 2, "raw_text": True}
        )
    async with Client(build_server(context, Caller(investigations.get(second.id)))) as client:
        assert "no run" in await refused(client, "view_run", {"run": mine["run_id"]})
        assert (await good(client, "list_runs", {"pair": second.label}))["result"]["total"] == 0
        assert "unknown job" in await refused(client, "get_job", {"job_id": asked["job"]["job_id"]})
        assert "unknown job" in await refused(client, "cancel_job", {"job_id": asked["job"]["job_id"]})
        assert "There is one pair here" in await refused(client, "kl", {"pair": first.label})
        assert "There is one pair here" in await refused(client, "kl", {"pair": pair_name})
        assert "corpus must be one of" in await refused(
            client, "kl", {"pair": second.label, "corpus": "/etc/hosts.txt"}
        )
        assert "corpus must be one of" in await refused(
            client, "overview", {"pair": second.label, "corpus": "hub:some/data"}
        )
        assert "verbalizer must be one of" in await refused(
            client, "activation_oracle", {"pair": second.label, "verbalizer": "/some/folder"}
        )


async def test_an_investigation_is_given_no_address_of_a_run(confined: tuple[Client, str]) -> None:
    client, label = confined
    answer = await answered(client, "kl", {"pair": label, **SMALL})
    assert (answer.structured_content or {})["run_id"]
    assert RUN not in (answer.meta or {})


async def test_resources_are_closed_to_investigations(confined: tuple[Client, str]) -> None:
    client, label = confined
    for uri in ("diffing://runs", "diffing://runs/kl-000000", f"diffing://investigations/{label}"):
        with pytest.raises(Exception, match="resources are for operators"):
            await client.read_resource(uri)


async def test_a_crash_is_told_by_an_id_alone(
    context: ServerContext, pair_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    new = investigations.create(pair_name)
    # A damaged store: what libraries say about it must stay in the log.
    (context.store.folder).rmdir()
    context.store.folder.write_text("not a folder")
    async with Client(build_server(context, Caller(investigations.get(new.id)))) as client:
        said = await refused(client, "list_runs", {"pair": new.label})
    assert "internal error" in said
    assert str(context.store.folder) not in said
    assert said.split("internal error ")[1][:8] in caplog.text
