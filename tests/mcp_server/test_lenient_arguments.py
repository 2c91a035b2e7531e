"""What real hosts and agents send: nulls, single values, JSON as text, other case, flat parameters of a view; and the
schemas that all of them take.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from mcp import Client

from diffing_mcp.mcp_server.arguments import coerced, cuts
from diffing_mcp.mcp_server.toolset import toolset
from tests.mcp_server.answers import good, refused, text_of


def parts(schema: Any) -> Iterator[dict[str, Any]]:
    """Every object inside a JSON schema."""
    if isinstance(schema, list):
        for item in schema:
            yield from parts(item)
    elif isinstance(schema, dict):
        yield schema
        for item in schema.values():
            yield from parts(item)


@pytest.mark.parametrize("name", sorted(toolset()))
def test_schemas_use_the_words_that_all_hosts_take(name: str) -> None:
    for part in parts(toolset()[name].input_schema):
        assert not isinstance(part.get("type"), list)
        assert "prefixItems" not in part
        assert part.get("additionalProperties") is not False
        assert part.get("type") != "array" or "items" in part
        assert {"type": "null"} not in part.get("anyOf", [])


@pytest.mark.parametrize("name", sorted(toolset()))
def test_null_stands_for_every_optional_argument(name: str) -> None:
    tool = toolset()[name]
    required = set(tool.input_schema.get("required", []))
    nulls: dict[str, Any] = {field: None for field in tool.input_schema["properties"] if field not in required}
    for field, value in coerced(tool.Arguments, tool.input_schema, nulls).items():
        assert tool.Arguments.__pydantic_validator__.validate_assignment(
            tool.Arguments.model_construct(), field, value
        ), field


def test_what_is_unmistakable_is_understood() -> None:
    ask = toolset()["ask_models"]

    def taken(**arguments: Any) -> dict[str, Any]:
        return coerced(ask.Arguments, ask.input_schema, arguments)

    assert taken(prompts="Hello?") == {"prompts": ["Hello?"]}
    assert taken(prompts='["a", "b"]', conversations="[broken") == {
        "prompts": ["a", "b"],
        "conversations": [["[broken"]],
    }
    assert taken(side="Base") == {"side": "base"}
    assert taken(side="neither") == {"side": "neither"}
    assert taken(samples=None, seed=3) == {"seed": 3}
    turns = [{"role": "USER", "content": "x"}, {"role": "assistant", "content": "y"}, {"role": "user", "content": "z"}]
    assert taken(conversations=turns)["conversations"] == [[{**turn, "role": turn["role"].lower()} for turn in turns]]
    assert taken(prompts='{"a": 1}') == {"prompts": ['{"a": 1}']}, "one prompt, which is JSON"
    listing, finding = toolset()["list_pairs"], toolset()["submit_finding"]
    assert coerced(listing.Arguments, listing.input_schema, {"limit": "500"}) == {"limit": 80}
    assert cuts(listing.input_schema, {"limit": "500"}) == ["limit=500 was cut to its maximum, 80."]
    assert coerced(listing.Arguments, listing.input_schema, {"limit": "many"}) == {"limit": "many"}
    evidence = coerced(finding.Arguments, finding.input_schema, {"evidence": '{"source": "kl-1"}'})
    assert evidence == {"evidence": [{"source": "kl-1"}]}
    bare = coerced(finding.Arguments, finding.input_schema, {"evidence": ["kl-1", "kl-2"]})
    assert bare == {"evidence": [{"source": "kl-1"}, {"source": "kl-2"}]}
    amplify = toolset()["weight_amplification"]
    assert coerced(amplify.Arguments, amplify.input_schema, {"layers": "[0, 1.0]"}) == {"layers": [0, 1.0]}


def test_a_pair_is_no_mistake_where_none_is_needed() -> None:
    """Nearly every tool takes one."""
    finding = toolset()["submit_finding"]
    given = {"pair": "pair-1", "verdict": "difference", "sentence": "x"}
    assert coerced(finding.Arguments, finding.input_schema, given) == {"verdict": "difference", "sentence": "x"}


async def test_views_take_their_parameters_flat_and_a_pair_that_fits(modern: Client, pair_name: str) -> None:
    run = await good(modern, "kl", {"pair": pair_name, "max_samples": 4, "max_tokens": 8, "wait_seconds": 500})
    asked = {"run_id": run["run_id"], "view": "tokens"}
    nested = await good(modern, "view_run", {**asked, "params": {"limit": 2}})
    for same in (
        {**asked, "limit": 2},
        {**asked, "limit": 2, "pair": pair_name},
        {**asked, "params": '{"limit": 2}'},
        {"run": run["run_id"], "view": "tokens", "limit": 2},
    ):
        assert (await good(modern, "view_run", same))["result"]["data"] == nested["result"]["data"]
    assert await good(modern, "view_run", {**asked, "limit": 10**6})
    assert "limt" in await refused(modern, "view_run", {**asked, "limt": 2})
    assert "without `view`" in await refused(modern, "view_run", {"run_id": run["run_id"], "limit": 2})


async def test_numbers_that_nothing_holds_are_refused_or_cut(modern: Client) -> None:
    huge = 10**400
    assert "must be less than or equal to" in await refused(modern, "record_hypothesis", {"number": huge})
    assert "must be less than or equal to" in await refused(modern, "overview", {"pair": "x", "seed": huge})
    assert "was cut to its maximum, 80" in text_of(await modern.call_tool("list_pairs", {"limit": huge}))
    assert ", none here;" in text_of(await modern.call_tool("list_pairs", {"offset": huge}))
