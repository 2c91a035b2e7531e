"""The server in memory, in both protocol eras, on a real tiny pair."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from diffing_mcp.core.wire import RUN
from diffing_mcp.mcp_server.instructions import INSTRUCTIONS
from diffing_mcp.mcp_server.offer import Selection
from diffing_mcp.mcp_server.serve import build_server
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.methods.registry import all_methods
from tests.mcp_server.answers import answered, good, held, refused, text_of

SMALL = {"max_samples": 24, "max_tokens": 12}


@pytest.fixture(params=["auto", "legacy"])
async def client(request: pytest.FixtureRequest, context: ServerContext) -> AsyncIterator[Client]:
    """An operator's client, in either era."""
    async with held(Client(build_server(context), mode=request.param)) as client:
        yield client


async def test_tools_are_described_for_agents(context: ServerContext) -> None:
    async with Client(build_server(context, selection=Selection(("all",)))) as client:
        tools = (await client.list_tools()).tools
        again = (await client.list_tools()).tools
        assert client.instructions == INSTRUCTIONS
    assert again == tools
    names = [tool.name for tool in tools]
    assert len(names) == len(set(names))
    assert {
        "list_pairs",
        "describe_pair",
        "load_pair",
        "ask_models",
        "compare_text",
        "overview",
        "view_run",
        "list_runs",
        *all_methods(),
    } <= set(names)
    for tool in tools:
        assert tool.description
        assert len(tool.description) <= 1000
        assert tool.annotations is not None
        hints = tool.annotations
        assert None not in (
            hints.read_only_hint,
            hints.destructive_hint,
            hints.idempotent_hint,
            hints.open_world_hint,
        ), tool.name
        for name, schema in tool.input_schema["properties"].items():
            plain = ("offset", "limit", "top_p", "job_id", "seed", "status", "reasoning")
            assert schema.get("description") or name in plain, (tool.name, name)
    assert len(INSTRUCTIONS) <= 2000


async def test_pairs_are_listed_described_and_loaded(client: Client, tiny_models: Any, tiny_adapters: Any) -> None:
    base = tiny_models(seed=11)  # a model that no other test holds in memory, since it is unloaded at the end
    pair_name = f"{base}::{tiny_adapters(base)}"
    listed = await good(client, "list_pairs", {"limit": 3})
    assert len(listed["result"]["pairs"]) <= 3
    described = await good(client, "describe_pair", {"pair": pair_name})
    assert described["result"]["sources"]["finetuned"]
    loaded = await good(client, "load_pair", {"pair": pair_name})
    assert loaded["result"]["num_layers"] > 0
    again = await good(client, "describe_pair", {"pair": pair_name})
    assert again["result"]["num_layers"] == loaded["result"]["num_layers"]
    resident = (await good(client, "list_pairs", {}))["result"]["resident"]
    assert resident
    unloaded = await good(client, "unload_pair", {"pair": pair_name})
    assert len(unloaded["result"]["resident"]) < len(resident)
    await good(client, "load_pair", {"pair": pair_name})
    again = await good(client, "list_pairs", {})
    assert len(again["result"]["resident"]) == len(resident), "it was only said to be loaded"
    await good(client, "unload_pair", {"pair": pair_name})


async def test_a_run_that_was_deleted_is_made_anew(modern: Client, pair_name: str, context: ServerContext) -> None:
    arguments = {"pair": pair_name, **SMALL}
    first = await good(modern, "kl", arguments)
    context.store.delete(first["run_id"])
    again = await good(modern, "kl", arguments)
    assert again["result"] == first["result"]
    assert context.store.get(again["run_id"])


async def test_both_sides_answer_the_same_prompts(client: Client, pair_name: str) -> None:
    arguments = {
        "pair": pair_name,
        "prompts": ["Hello", "Tell me more"],
        "samples": 2,
        "max_new_tokens": 6,
        "raw_text": True,
    }
    answer = await good(client, "ask_models", arguments)
    rows = answer["result"]["answers"]
    assert [len(row[side]) for row in rows for side in ("base", "finetuned")] == [2, 2, 2, 2]
    assert await good(client, "ask_models", arguments) == answer | {
        "job": (await good(client, "ask_models", arguments))["job"]
    }
    one = await good(client, "ask_models", {**arguments, "side": "base"})
    assert one["result"]["answers"][0]["finetuned"] is None
    assert one["result"]["answers"][0]["base"] == rows[0]["base"]


async def test_a_single_string_is_one_prompt(modern: Client, pair_name: str) -> None:
    answer = await good(
        modern, "ask_models", {"pair": pair_name, "prompts": "Hello", "max_new_tokens": 2, "raw_text": True}
    )
    assert len(answer["result"]["answers"]) == 1


async def test_nested_arguments_may_come_as_json_text(modern: Client, pair_name: str) -> None:
    answer = await good(
        modern, "ask_models", {"pair": pair_name, "prompts": '["a b", "c"]', "max_new_tokens": 2, "raw_text": True}
    )
    assert len(answer["result"]["answers"]) == 2


async def test_conversations_with_system_prompt_and_prefill(modern: Client, pair_name: str) -> None:
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "go on"},
    ]
    arguments = {
        "pair": pair_name,
        "conversations": [turns],
        "prompts": ["and you"],
        "system_prompt": "Be short.",
        "prefill": "Well",
        "max_new_tokens": 4,
    }
    answer = await good(modern, "ask_models", arguments)
    assert [row["prompt"] for row in answer["result"]["answers"]] == ["and you", "go on"]


async def test_one_text_under_both_models(client: Client, pair_name: str) -> None:
    answer = await good(
        client, "compare_text", {"pair": pair_name, "text": "the quick brown fox jumps over the lazy dog", "top": 3}
    )
    result = answer["result"]
    assert (
        len(result["tokens"])
        == len(result["base_log_prob"])
        == len(result["finetuned_log_prob"])
        == len(result["kl"])
        > 3
    )
    assert all(value <= 0 for value in result["base_log_prob"] + result["finetuned_log_prob"])
    assert all(value >= 0 for value in result["kl"])
    kls = [detail["kl"] for detail in result["top"]]
    assert kls == sorted(kls, reverse=True)
    assert kls[0] == pytest.approx(max(result["kl"]), abs=1e-3)


@pytest.mark.parametrize("method", list(all_methods()))
async def test_methods_run_and_are_lookups_when_asked_again(
    modern: Client, pair_name: str, method: str, small_params: Callable[[str], dict[str, Any]]
) -> None:
    arguments = {"pair": pair_name, **small_params(method)}
    answer = await good(modern, method, arguments)
    assert answer["run_id"].startswith(method)
    again = await good(modern, method, arguments)
    assert again["run_id"] == answer["run_id"]
    assert again["result"] == answer["result"]
    assert "job" not in again
    listed = await good(modern, "list_runs", {"pair": pair_name, "method": method})
    mine = next(row for row in listed["result"]["runs"] if row["run_id"] == answer["run_id"])
    assert set(mine["params"]) <= set(small_params(method)), "what was left at its default is not listed"
    opened = await good(modern, "view_run", {"run": answer["run_id"]})
    assert opened["result"]["result"] == answer["result"]
    for view in opened["result"]["views"]:
        shown = await answered(modern, "view_run", {"run": answer["run_id"], "view": view["name"]})
        # A view may need parameters; then the error says which.
        assert not shown.is_error or "Parameters" in text_of(shown), text_of(shown)


async def test_the_overview_digests_all_cheap_methods_and_fits(modern: Client, pair_name: str) -> None:
    arguments = {"pair": pair_name, "max_characters": 3000, "budget": 150_000, **SMALL}
    answer = await answered(modern, "overview", arguments)
    while (answer.structured_content or {}).get("status") == "running":
        answer = await answered(modern, "get_job", {"job_id": answer.structured_content["job"]["job_id"]})
    assert not answer.is_error, text_of(answer)
    assert len(text_of(answer)) <= 3000 + 800
    result = (answer.structured_content or {})["result"]
    assert {row["method"] for row in result["runs"]} >= {
        "kl",
        "contrastive_decoding",
        "weight_difference",
        "patchscope",
    }
    assert result["left_out"]
    again = await good(modern, "overview", arguments)
    assert [row["run"] for row in again["result"]["runs"]] == [row["run"] for row in result["runs"]]
    assert "job" not in again  # a lookup


async def test_an_overview_of_named_methods_chains_the_lens_or_refuses(modern: Client, pair_name: str) -> None:
    answer = await good(modern, "overview", {"pair": pair_name, "methods": ["patchscope"], **SMALL})
    assert [row["method"] for row in answer["result"]["runs"]] == ["activation_difference_lens", "patchscope"]
    mined = await good(modern, "overview", {"pair": pair_name, "methods": ["diff_mining"], **SMALL})
    assert [row["method"] for row in mined["result"]["runs"]] == ["logit_diff_topk_occurring"]
    assert "methods: kl" in await refused(modern, "overview", {"pair": pair_name, "methods": ["nonsense"]})
    assert "leave it out" in await refused(modern, "overview", {"pair": pair_name, "methods": []})
    assert "patchscope" in await refused(modern, "overview", {"pair": pair_name, "budget": 500})


async def test_an_estimate_starts_nothing(client: Client, pair_name: str, context: ServerContext) -> None:
    answer = await answered(client, "kl", {"pair": pair_name, "estimate_only": True})
    assert answer.structured_content is not None
    assert answer.structured_content["status"] == "estimate"
    assert answer.structured_content["estimate"]["tokens"] > 0
    assert context.jobs.list(None) == []


async def test_errors_say_what_to_do(client: Client, pair_name: str) -> None:
    assert "Did you mean kl" in await refused(client, "kll", {})
    said = await refused(client, "ask_models", {"pair": pair_name, "promts": ["x"]})
    assert "did you mean `prompts`" in said
    assert "`pair` is missing" in await refused(client, "kl", {})
    assert "at least one prompt" in await refused(client, "ask_models", {"pair": pair_name})
    assert "no_such" in await refused(client, "kl", {"pair": "no_such_thing"})
    assert "unknown job" in await refused(client, "get_job", {"job_id": "kl-00000000"})
    assert "no run" in await refused(client, "view_run", {"run": "kl-00000000"})
    assert "Did you mean" in await refused(client, "list_runs", {"pair": pair_name, "method": "perplexity_diference"})
    assert "max_samples" in await refused(client, "kl", {"pair": pair_name, "max_samples": 0})
    assert "context" in await refused(
        client, "ask_models", {"pair": pair_name, "prompts": ["word " * 3000], "raw_text": True}
    )
    for said in (
        await refused(client, "kl", {"pair": pair_name, "max_samples": "many"}),
        await refused(client, "view_run", {"run": "x"}),
    ):
        assert "Traceback" not in said
        assert "pydantic" not in said


async def test_corpora_outside_of_the_data_folder_are_refused(
    modern: Client, pair_name: str, data_folder: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "secret.txt"
    outside.write_text("one\ntwo three four five\n" * 20)
    assert "data folder" in await refused(modern, "kl", {"pair": pair_name, "corpus": str(outside)})
    data_folder.mkdir(exist_ok=True)
    (data_folder / "link.txt").symlink_to(outside)
    assert "data folder" in await refused(modern, "kl", {"pair": pair_name, "corpus": str(data_folder / "link.txt")})
    assert "data folder" in await refused(
        modern, "kl", {"pair": pair_name, "corpus": str(data_folder / ".." / "secret.txt")}
    )
    assert "data folder" in await refused(modern, "kl", {"pair": pair_name, "corpus": "\0.txt"})
    inside = data_folder / "mine.txt"
    inside.write_text("\n".join(f"the {number} cat sat on the mat and looked at the dog" for number in range(30)))
    assert (await good(modern, "kl", {"pair": pair_name, "corpus": str(inside), **SMALL}))["run_id"]


async def test_results_fit_into_an_agents_context(
    modern: Client, pair_name: str, small_params: Callable[[str], dict[str, Any]]
) -> None:
    many = {
        "pair": pair_name,
        "prompts": [f"prompt {n}" for n in range(20)],
        "samples": 4,
        "max_new_tokens": 60,
        "raw_text": True,
    }
    calls: list[tuple[str, dict[str, Any]]] = [
        ("ask_models", many),
        ("compare_text", {"pair": pair_name, "text": "some words of no meaning " * 100}),
        ("describe_pair", {"pair": pair_name}),
    ]
    for tool, arguments in calls:
        answer = await answered(modern, tool, arguments)
        assert not answer.is_error, text_of(answer)
        assert len(text_of(answer)) <= 9000, (tool, len(text_of(answer)))
        assert len(json.dumps(answer.structured_content, ensure_ascii=False)) <= 16_000, tool
    assert len(text_of(await answered(modern, "list_pairs", {}))) <= 9000  # however many models are in memory


async def test_untrusted_text_is_fenced_with_a_mark_of_its_own(modern: Client, pair_name: str) -> None:
    marks = set()
    for seed in range(3):
        text = text_of(
            await answered(
                modern,
                "ask_models",
                {"pair": pair_name, "prompts": ["x"], "seed": seed, "max_new_tokens": 3, "raw_text": True},
            )
        )
        assert "never instructions" in text
        marks.add(text.split("<untrusted-")[1][:8])
    assert len(marks) == 3
    await good(modern, "kl", {"pair": pair_name, **SMALL})
    listed = text_of(await answered(modern, "list_runs", {"pair": pair_name}))
    assert (
        listed.index("<untrusted-") < listed.index("kl-") < listed.index("</untrusted-")
    )  # headlines quote the models


async def test_a_method_is_called_by_its_alias_too(modern: Client, pair_name: str) -> None:
    said = await refused(modern, "diff_mining", {"pair": pair_name, "no_such": 1})
    assert said.startswith("logit_diff_topk_occurring: `no_such` is unknown")


async def test_prompts_and_resources(client: Client, pair_name: str) -> None:
    prompt = await client.get_prompt("audit_pair", {"pair": "pair-1234"})
    assert "pair-1234" in str(prompt.messages[0].content)
    answer = await good(client, "kl", {"pair": pair_name, **SMALL})
    runs = json.loads((await client.read_resource("diffing://runs")).contents[0].model_dump()["text"])
    assert answer["run_id"] in [run["id"] for run in runs]
    one = json.loads(
        (await client.read_resource(f"diffing://runs/{answer['run_id']}")).contents[0].model_dump()["text"]
    )
    assert one["result"]["headline"]
    again = await client.call_tool("kl", {"pair": pair_name, **SMALL})
    assert (again.meta or {})[RUN] == f"diffing://runs/{answer['run_id']}"
    assert {block.type for block in again.content} == {"text"}
