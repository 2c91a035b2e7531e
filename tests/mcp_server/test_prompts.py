"""Prompts that people choose in hosts, and what completes their arguments, for operators and for investigations."""

from __future__ import annotations

from typing import Any

import pytest
from mcp import Client, MCPError
from mcp.types import INVALID_PARAMS, PromptReference, ResourceTemplateReference

from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.auth import Caller
from diffing_mcp.mcp_server.prompts import MOST_COMPLETIONS
from diffing_mcp.mcp_server.serve import build_server
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.mcp_server.toolset import toolset
from tests.mcp_server.answers import good

ARGUMENTS = {
    "audit_pair": {"pair": "pair-1234"},
    "explain_finding": {"run_id": "kl-1f3a9c"},
    "compare_two_finetunes": {"first": "cake_bake", "second": "roman_concrete"},
}


async def completed(client: Client, prompt: str, argument: str, typed: str) -> Any:
    answer = await client.complete(PromptReference(name=prompt), {"name": argument, "value": typed})
    return answer.completion


async def test_every_prompt_is_described_and_names_what_it_was_given(modern: Client) -> None:
    listed = {prompt.name: prompt for prompt in (await modern.list_prompts()).prompts}
    assert listed.keys() == ARGUMENTS.keys()
    for name, arguments in ARGUMENTS.items():
        declared = listed[name].arguments or []
        assert {argument.name for argument in declared} == arguments.keys()
        assert all(argument.description for argument in declared)
        [message] = (await modern.get_prompt(name, arguments)).messages
        assert all(value in str(message.content) for value in arguments.values())


async def test_finetunes_of_pairs_that_are_named_by_both_sides_are_compared(modern: Client) -> None:
    arguments = {"first": "some/base::first/one", "second": "some/base::second/one"}
    [message] = (await modern.get_prompt("compare_two_finetunes", arguments)).messages
    assert "the pair first/one::second/one," in str(message.content)


async def test_the_tools_that_prompts_name_exist(modern: Client) -> None:
    words = {
        word.strip(".,:;()'\"")
        for name, arguments in ARGUMENTS.items()
        for word in str((await modern.get_prompt(name, arguments)).messages[0].content).split()
    }
    verbs = ("list_", "view_", "ask_", "record_", "submit_", "overview")
    assert {word for word in words if word.startswith(verbs)} <= toolset().keys()


@pytest.mark.parametrize(
    ("prompt", "argument"),
    [("audit_pair", "pair"), ("compare_two_finetunes", "first"), ("compare_two_finetunes", "second")],
)
async def test_names_of_pairs_are_completed_those_on_this_machine_first(
    modern: Client, prompt: str, argument: str
) -> None:
    found = await completed(modern, prompt, argument, "cake_b")
    assert found.values[0] == "cake_bake"
    assert all(name.startswith("cake_b") for name in found.values)
    everything = await completed(modern, prompt, argument, "")
    assert len(everything.values) == MOST_COMPLETIONS
    assert everything.has_more
    assert everything.total > MOST_COMPLETIONS


async def test_ids_of_runs_are_completed(modern: Client, pair_name: str) -> None:
    run = (await good(modern, "kl", {"pair": pair_name, "max_samples": 12, "max_tokens": 10}))["run_id"]
    assert run in (await completed(modern, "explain_finding", "run_id", "kl-")).values
    assert (await completed(modern, "explain_finding", "run_id", "no")).values == []
    template = ResourceTemplateReference(uri="diffing://runs/{run_id}")
    assert run in (await modern.complete(template, {"name": "run_id", "value": run[:5]})).completion.values


async def test_an_unknown_argument_completes_to_nothing(modern: Client) -> None:
    assert (await completed(modern, "audit_pair", "no_such", "")).values == []


async def test_of_an_unknown_prompt_nothing_is_completed(modern: Client) -> None:
    with pytest.raises(MCPError, match="There are: audit_pair, ") as caught:
        await completed(modern, "no_such", "pair", "")
    assert caught.value.error.code == INVALID_PARAMS


async def test_an_investigation_completes_to_its_own_label_and_nothing_else(
    modern: Client, context: ServerContext, pair_name: str
) -> None:
    await good(modern, "kl", {"pair": pair_name, "max_samples": 12, "max_tokens": 10})
    new = investigations.create(pair_name, "method", interactions=10)
    template = ResourceTemplateReference(uri="diffing://investigations/{identifier}")
    async with Client(build_server(context, Caller(investigations.get(new.id)))) as blind:
        assert {prompt.name for prompt in (await blind.list_prompts()).prompts} == {"audit_pair", "explain_finding"}
        for argument in ("pair", "first", "second"):
            assert (await completed(blind, "audit_pair", argument, "")).values == [new.label]
            assert (await completed(blind, "audit_pair", argument, "cake")).values == []
        assert (await completed(blind, "explain_finding", "run_id", "")).values == []
        with pytest.raises(MCPError, match="no 'diffing://investigations"):
            await blind.complete(template, {"name": "identifier", "value": ""})
    operator = await modern.complete(template, {"name": "identifier", "value": ""})
    assert operator.completion.values == [new.id]
