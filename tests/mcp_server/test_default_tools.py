"""The few tools that a client lists at first, the way to all others, and the answers as every host shows them: one text
and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, MCPError
from mcp.client.subscriptions import ToolsListChanged
from mcp.types import INVALID_PARAMS, ToolListChangedNotification
from tokenizers import Tokenizer

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.auth import Caller
from diffing_mcp.mcp_server.offer import Offer, Selection
from diffing_mcp.mcp_server.serve import build_server
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.mcp_server.tools_pairs import ResidentRow
from diffing_mcp.mcp_server.toolset import DEFAULT_TOOLS, toolset, toolsets
from diffing_mcp.methods.registry import all_methods
from diffing_mcp.organisms.embedded import embedded_model_folder
from tests.mcp_server.answers import answered, good, refused, text_of


@lru_cache(maxsize=1)
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(embedded_model_folder() / "tokenizer.json"))


def tokens_of(text: str) -> int:
    """Tokens of the embedded model, whose vocabulary is small: an agent's model needs fewer."""
    return len(tokenizer().encode(text).ids)


MODES = pytest.mark.parametrize("mode", ["auto", "legacy"])


async def names_of(client: Client) -> list[str]:
    return [tool.name for tool in (await client.list_tools()).tools]


async def test_the_default_tools_leave_room_in_an_agents_context(context: ServerContext) -> None:
    """At most 12 tools and 4,000 tokens."""
    async with Client(build_server(context)) as client:
        tools = (await client.list_tools()).tools
    assert len(tools) <= len(DEFAULT_TOOLS) == 12
    assert [tool.name for tool in tools] == [name for name in toolset() if name in DEFAULT_TOOLS]
    listed = [
        {"name": tool.name, "title": tool.title, "description": tool.description, "schema": tool.input_schema}
        for tool in tools
    ]
    assert tokens_of(json.dumps(listed, separators=(",", ":"), ensure_ascii=False)) <= 4000


@MODES
async def test_an_answer_is_one_text_unless_a_program_asks_for_data(
    context: ServerContext, pair_name: str, mode: str
) -> None:
    new = investigations.create(pair_name, interactions=10, tool_calls=20)
    caller = Caller(investigations.get(new.id))
    arguments = {"pair": new.label, "max_samples": 4, "max_tokens": 8, "wait_seconds": 50}
    async with Client(build_server(context, caller), mode=mode) as client:
        plain = await client.call_tool("kl", arguments)
        assert all(tool.output_schema is None for tool in (await client.list_tools()).tools)
        asked = await answered(client, "kl", arguments)
    assert plain.structured_content is None
    assert [block.type for block in plain.content] == ["text"]
    assert asked.structured_content is not None
    # What an agent needs to go on stands in the text.
    text = text_of(plain)
    run = asked.structured_content["run_id"]
    assert f"run: {run}" in text
    assert "view_run(run_id=" in text
    assert "budget left: 10/10 model interactions, 19/20 tool calls" in text
    assert text.count("<untrusted-") == 1


@MODES
async def test_a_running_job_is_told_in_the_text(
    context: ServerContext, pair_name: str, mode: str, slow_batches: None
) -> None:
    async with Client(build_server(context), mode=mode) as client:
        started = await client.call_tool(
            "kl", {"pair": pair_name, "max_samples": 2000, "max_tokens": 30, "wait_seconds": 0}
        )
        [job] = context.jobs.list(None)
        assert f'get_job(job_id="{job.id}")' in text_of(started)
        assert "cancel=true" in text_of(started)
        stopped = await client.call_tool("get_job", {"job_id": job.id, "cancel": True})
        assert job.state == "cancelled"
        assert f"{job.id} is cancelled" in text_of(stopped)
        assert "which job" in await refused(client, "get_job", {"cancel": True})


@MODES
async def test_every_other_tool_is_found_switched_on_and_called(
    context: ServerContext, pair_name: str, mode: str
) -> None:
    async with Client(build_server(context), mode=mode) as client:
        everything = text_of(await client.call_tool("more_tools", {}))
        assert all(name in everything for name in toolset() if name not in DEFAULT_TOOLS)
        assert "\nkl: " in everything
        assert tokens_of(everything) <= 500
        assert "kl" not in await names_of(client)
        described = await good(client, "more_tools", {"tool": "kl"})
        assert described["result"]["tool"]["input_schema"] == toolset()["kl"].input_schema
        assert "kl" in await names_of(client)
        small = {"pair": pair_name, "max_samples": 4, "max_tokens": 8, "wait_seconds": 50}
        for given in (small, json.dumps(small)):
            through = await client.call_tool("more_tools", {"tool": "kl", "arguments": given})
            assert not through.is_error, text_of(through)
            assert "run: kl-" in text_of(through)
        # By its own name, never listed.
        assert "pca" not in await names_of(client)
        assert (await good(client, "pca", {**small, "estimate_only": True}))["status"] == "estimate"
        assert "Tools: " in await refused(client, "more_tools", {"tool": "no_such"})
        assert "there is no tool" in await refused(client, "more_tools", {"tool": "no_such", "arguments": {}})
        assert "max_samples" in await refused(client, "more_tools", {"tool": "kl", "arguments": {"max_samples": 0}})
        assert "name it" in await refused(client, "more_tools", {"arguments": small})


async def test_an_investigation_sees_no_resources(context: ServerContext, pair_name: str) -> None:
    async with Client(build_server(context)) as client:
        assert (await client.list_resources()).resources
        assert (await client.list_resource_templates()).resource_templates
    caller = Caller(investigations.get(investigations.create(pair_name).id))
    async with Client(build_server(context, caller)) as client:
        assert (await client.list_resources()).resources == []
        assert (await client.list_resource_templates()).resource_templates == []


@MODES
async def test_wrong_prompts_are_invalid_params(
    context: ServerContext, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Client(build_server(context), mode=mode) as client:
        prompts = (await client.list_prompts()).prompts
        assert all(argument.description for prompt in prompts for argument in prompt.arguments or [])
        for name, arguments, said in (("no_such", {}, "audit_pair"), ("audit_pair", {"nonsense": "x"}, "pair")):
            with pytest.raises(MCPError, match=said) as refusal:
                await client.get_prompt(name, arguments)
            assert refusal.value.code == INVALID_PARAMS
    assert "Traceback" not in caplog.text


async def test_a_client_of_2025_hears_that_its_list_changed(context: ServerContext) -> None:
    heard = anyio.Event()

    async def listen(message: object) -> None:
        if isinstance(message, ToolListChangedNotification):
            heard.set()

    async with Client(build_server(context), mode="legacy", message_handler=listen) as client:
        assert client.server_capabilities.tools is not None
        assert client.server_capabilities.tools.list_changed
        await client.call_tool("more_tools", {"tool": "kl"})
        with anyio.fail_after(5):
            await heard.wait()


async def test_a_client_of_2026_hears_that_its_list_changed(context: ServerContext) -> None:
    async with Client(build_server(context)) as client, client.listen(tools_list_changed=True) as events:
        assert client.server_capabilities.tools is not None
        assert client.server_capabilities.tools.list_changed
        await client.call_tool("more_tools", {"tool": "kl"})
        with anyio.fail_after(5):
            async for event in events:
                assert isinstance(event, ToolsListChanged)
                break


@MODES
async def test_only_what_is_sent_is_advertised(context: ServerContext, mode: str) -> None:
    async with Client(build_server(context), mode=mode) as client:
        capabilities = client.server_capabilities
    assert capabilities.resources is not None
    assert capabilities.prompts is not None
    assert capabilities.resources.subscribe  # diffing://runs changes when a job ends
    assert not capabilities.resources.list_changed
    assert not capabilities.prompts.list_changed


async def test_what_a_caller_switches_on_is_its_own(context: ServerContext, pair_name: str) -> None:
    server = build_server(context)
    new = investigations.create(pair_name)
    other = Caller(investigations.get(new.id))
    assert server.offer.switch_on(Caller(), "kl")
    assert not server.offer.switch_on(Caller(), "kl")
    assert "kl" in server.offer.listed(Caller())
    assert "kl" not in server.offer.listed(other)


@pytest.mark.parametrize("arm", ["blackbox", "method"])
async def test_an_investigation_lists_what_its_arm_may_use(context: ServerContext, pair_name: str, arm: str) -> None:
    new = investigations.create(pair_name, arm)
    async with Client(build_server(context, Caller(investigations.get(new.id)))) as client:
        names = await names_of(client)
        assert set(names) == {
            name for name in DEFAULT_TOOLS if name in toolset() and investigations.get(new.id).allows(name)
        }
        reachable = [row["name"] for row in (await good(client, "more_tools", {}))["result"]["tools"]]
        assert ("kl" in reachable) == (arm == "method")
        assert "open_investigation" not in reachable
        assert "there is no tool" in await refused(client, "more_tools", {"tool": "unload_pair", "arguments": {}})


async def test_many_models_in_memory_leave_the_list_of_pairs_short(
    modern: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [ResidentRow(label="folder/" * 40, megabytes=2.0, in_use=False) for _ in range(40)]
    monkeypatch.setattr("diffing_mcp.mcp_server.tools_pairs._resident", lambda call: held)
    said = text_of(await modern.call_tool("list_pairs", {"limit": 80}))
    assert "in memory besides: 37 more, 74 MB" in said
    assert len(said) <= 7000


async def test_default_answers_and_views_are_short(
    modern: Client, pair_name: str, small_params: Callable[[str], dict[str, Any]]
) -> None:
    """At most 2,000 tokens at 3.5 characters; texts of a random model have fewer characters a token."""
    many = {"prompts": [f"prompt {n}" for n in range(8)], "samples": 2, "max_new_tokens": 60, "raw_text": True}
    for method in all_methods():
        asked = {"pair": pair_name, **small_params(method), "wait_seconds": 50}
        answer = await good(modern, method, asked)
        assert len(json.dumps(answer, ensure_ascii=False)) <= 16_000, method
        run = answer["run_id"]
        calls: list[tuple[str, dict[str, Any]]] = [(method, asked), ("view_run", {"run_id": run})]
        opened = await good(modern, "view_run", {"run_id": run})
        calls += [("view_run", {"run_id": run, "view": view["name"]}) for view in opened["result"]["views"]]
        for tool, arguments in calls:
            said = text_of(await modern.call_tool(tool, arguments))
            assert len(said) <= 7000, (tool, arguments, len(said))
    for tool, arguments in (
        ("list_pairs", {}),
        ("list_pairs", {"limit": 80}),
        ("list_runs", {"pair": pair_name}),
        ("ask_models", {"pair": pair_name, **many, "wait_seconds": 50}),
        ("more_tools", {}),
        ("facts", {"pair": pair_name}),
        ("overview", {"pair": pair_name, "methods": ["kl", "weight_difference"], "max_samples": 24, "max_tokens": 12}),
        ("complete_slots", {"pair": pair_name, "beginnings": [f"The {n}th is" for n in range(12)]}),
        (
            "test_hypothesis",
            {"pair": pair_name, "prompts": many["prompts"], "pattern": "a", "raw_text": True, "samples": 1},
        ),
    ):
        said = text_of(await modern.call_tool(tool, arguments))
        assert len(said) <= 7000, (tool, len(said))


async def test_views_come_in_pages(modern: Client, pair_name: str) -> None:
    run = await good(modern, "kl", {"pair": pair_name, "max_samples": 40, "max_tokens": 30, "wait_seconds": 50})
    view = {"run_id": run["run_id"], "view": "tokens"}
    first = text_of(await modern.call_tool("view_run", {**view, "limit": 4}))
    assert "showing 1-4 of " in first
    assert "offset=4 for more" in first
    second = text_of(await modern.call_tool("view_run", {**view, "limit": 4, "offset": 4}))
    assert "showing 5-8 of " in second
    cut = text_of(await modern.call_tool("view_run", {**view, "limit": 5000}))
    assert "limit=5000 was cut to its maximum, 100." in cut
    assert len(cut) <= 7000
    # What did not fit is the next page, and a program that asks for data gets all of it.
    whole = await good(modern, "view_run", {**view, "limit": 100})
    rows = whole["result"]["data"]["rows"]
    shown = int(cut.split("showing 1-")[1].split(" ")[0])
    assert 1 <= shown <= len(rows)
    assert f"offset={shown} for more" in cut
    wrong = await refused(modern, "view_run", {**view, "limit": 0})
    assert "limit" in wrong
    wrong = await refused(modern, "view_run", {**view, "metric": "cosine"})
    assert "metric=kl_finetuned_base (kl_finetuned_base|kl_base_finetuned|js)" in wrong
    assert "limit=10 (1-100)" in wrong
    # Hosts that send every declared parameter: what a view does not have is left out when it is empty.
    every = {"limit": 3, "offset": 0, "contains": "", "params": "{}", "pair": pair_name}
    assert not (await modern.call_tool("view_run", {**view, "view": "positions", **every})).is_error
    assert "view" in await refused(modern, "view_run", {"run_id": run["run_id"], "limit": 3})


async def test_too_large_a_limit_is_cut_and_said(modern: Client) -> None:
    assert "limit=900 was cut to its maximum, 80." in text_of(await modern.call_tool("list_pairs", {"limit": 900}))


async def test_one_pair_is_described_where_it_is_listed(context: ServerContext, pair_name: str) -> None:
    new = investigations.create(pair_name, interactions=7, tool_calls=9)
    async with Client(build_server(context, Caller(investigations.get(new.id)))) as client:
        said = text_of(await client.call_tool("list_pairs", {}))
    assert new.label in said
    assert "ask_models 1 a prompt and sample" in said
    assert "budget left: 7/7 model interactions, 9/9 tool calls" in said
    async with Client(build_server(context)) as client:
        said = text_of(await client.call_tool("list_pairs", {"pair": pair_name}))
        assert f"pair {pair_name}: " in said
        assert "base: " in said


async def test_empty_calls_cost_nothing(context: ServerContext, pair_name: str) -> None:
    new = investigations.create(pair_name, interactions=5, tool_calls=5)
    async with Client(build_server(context, Caller(investigations.get(new.id)))) as client:
        for name in (await good(client, "more_tools", {}))["result"]["tools"]:
            await client.call_tool(name["name"], {})
            await client.call_tool("more_tools", {"tool": name["name"], "arguments": {}})
        for tool in ("ask_models", "compare_text"):
            assert (await client.call_tool(tool, {"pair": new.label})).is_error
        budget = (await good(client, "list_pairs", {}))["budget"]
    assert budget["interactions_left"] == budget["tool_calls_left"] == 5


def test_sets_single_tools_and_read_only_are_chosen() -> None:
    def offered(selection: Selection) -> Offer:
        return Offer(toolset(), toolsets(), selection)

    operator = Caller()
    always = {"get_job", "more_tools"}
    assert set(offered(Selection(("runs",))).listed(operator)) == {"list_runs", "view_run"} | always
    assert set(offered(Selection((), ("kl",))).listed(operator)) == {"kl"} | always
    assert set(offered(Selection(("default",), ("kl",))).listed(operator)) == {*toolsets()["default"], "kl"}
    assert set(offered(Selection(("all",))).listed(operator)) == set(toolset())
    lasting = {name for name, tool in toolset().items() if tool.lasting}
    assert set(offered(Selection(("all",), read_only=True)).usable(operator)) == set(toolset()) - lasting
    assert {"crosscoder", "sae_difference", "unload_pair", "delete_dictionary", "collect_activations"} <= lasting
    with pytest.raises(InvalidInput, match=r"metods.*methods"):
        offered(Selection(("metods",)))
    with pytest.raises(InvalidInput, match=r"no such tools: kll"):
        offered(Selection((), ("kll",)))


def test_settings_choose_tools_when_the_command_does_not(monkeypatch: pytest.MonkeyPatch, data_folder: Path) -> None:
    from diffing_mcp.core.settings import settings

    monkeypatch.setenv("DIFFING_TOOLSETS", "runs, pairs")
    monkeypatch.setenv("DIFFING_READ_ONLY", "true")
    settings.cache_clear()
    assert Selection.from_settings() == Selection(("runs", "pairs"), (), True)
    assert Selection.from_settings("methods", "kl,pca", False) == Selection(("methods",), ("kl", "pca"), False)
    settings.cache_clear()


async def test_a_read_only_server_says_so(context: ServerContext, pair_name: str) -> None:
    async with Client(build_server(context, selection=Selection(read_only=True))) as client:
        assert "read-only" in await refused(client, "crosscoder", {"pair": pair_name})


async def test_hints_say_what_a_tool_does(context: ServerContext, pair_name: str) -> None:
    tools = toolset()
    for name in ("crosscoder", "sae_difference", "collect_activations", "delete_dictionary", "record_hypothesis"):
        assert tools[name].annotations(operator=True).read_only_hint is False, name
    assert tools["kl"].annotations(operator=True).read_only_hint
    assert tools["kl"].annotations(operator=True).open_world_hint
    assert not tools["kl"].annotations(operator=False).open_world_hint
    assert not tools["get_job"].annotations(operator=True).open_world_hint
