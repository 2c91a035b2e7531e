"""Ways in which a blinded agent could tell its pair without asking the models anything: by models in memory that others
use, by words that are taken out of complaints, and by guesses that come back changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.auth import Caller
from diffing_mcp.mcp_server.redaction import redactor_of
from diffing_mcp.mcp_server.serve import build_server
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.model_pairs.resolve import resolve_pair
from tests.mcp_server.answers import answered, good


async def said_to(context: ServerContext, pair: str, tool: str, arguments: dict[str, Any]) -> str:
    """All that a fresh investigation of a pair reads in one answer, with its label as LABEL."""
    new = investigations.create(pair, "method")
    async with Client(build_server(context, Caller(investigations.get(new.id)))) as client:
        given = {**arguments, **({"pair": new.label} if "pair" in arguments else {})}
        result = await answered(client, tool, given)
    return json.dumps(result.model_dump(mode="json"), ensure_ascii=False).replace(new.label, "LABEL")


async def test_an_investigation_does_not_read_which_models_are_in_memory(
    context: ServerContext, modern: Client, rare_pair: str, pair_name: str
) -> None:
    """The list of pairs told it the adapters that other investigations had loaded, and in a path their names."""
    await good(modern, "load_pair", {"pair": rare_pair})
    listed = await good(modern, "list_pairs", {"pair": pair_name})
    assert "quetzalfidget" in json.dumps(listed["result"]["resident"]), "the operator sees it"
    for pair in (pair_name, rare_pair):
        said = await said_to(context, pair, "list_pairs", {})
        assert "LABEL" in said
        assert "megabytes" not in said
        assert "quetzalfidget" not in said


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("test_hypothesis", {"pair": "", "prompts": ["a"], "control_prompts": 3, "bogus": 1}),
        ("test_hypothesis", {"pair": "", "prompts": ["a"], "control_prompts": ["a"], "words": ["b"]}),
        ("test_hypothesis", {"pair": "", "prompts": ["control"], "control_prompts": ["control"], "words": ["b"]}),
        ("overview", {"pair": "", "methods": ["identical"]}),
    ],
)
async def test_complaints_read_the_same_whatever_the_pair_is_called(
    context: ServerContext, tool: str, arguments: dict[str, Any]
) -> None:
    """Of the null `control`, a complaint about control prompts spoke of LABEL_prompts: so it was known for a null."""
    said = {pair: await said_to(context, pair, tool, arguments) for pair in ("control", "identical", "cake_bake")}
    assert "LABEL_prompts" not in said["control"]
    assert len(set(said.values())) == 1, said


GUESSES = ("cake_bake", "control", "flattery", "poetic", "reseed")


def guesses() -> str:
    """What somebody who knows the catalogue would try: names as they are asked for, whole names, and adapters."""
    specs = [resolve_pair(name) for name in GUESSES]
    adapters = [spec.finetuned.adapter.id for spec in specs if spec.finetuned.adapter is not None]
    return " and ".join([*GUESSES, *(spec.name for spec in specs), *adapters])


@pytest.mark.parametrize("tool", ["no_such_tool", "describe_pair", "get_job", "view_run", "record_hypothesis"])
async def test_a_guess_comes_back_the_same_whether_right_or_wrong(context: ServerContext, tool: str) -> None:
    """Names of the agent's own pair, and these alone, were replaced in what it had written itself: one free call with
    all names of the catalogue told which was the right one.
    """
    said = set()
    for pair in ("cake_bake", "control", "poetic"):
        new = investigations.create(pair, "method")
        async with Client(build_server(context, Caller(investigations.get(new.id)))) as client:
            for guess in (guesses(), *GUESSES):
                arguments = {
                    "describe_pair": {"pair": guess},
                    "get_job": {"job_id": guess[:200]},
                    "view_run": {"run_id": guess[:200]},
                    "record_hypothesis": {"statement": guess, "likelihood": 0.5},
                }.get(tool, {})
                result = await answered(client, guess if tool == "no_such_tool" else tool, arguments)
                said.add((guess, json.dumps(result.model_dump(mode="json")).replace(new.label, "LABEL")))
            if tool == "record_hypothesis":
                listed = await answered(client, "list_hypotheses", {})
                said.add(("", json.dumps(listed.model_dump(mode="json")).replace(new.label, "LABEL")))
    assert len(said) == len({guess for guess, _ in said}), [text[:600] for _, text in sorted(said)]


BASE, ADAPTER = "somebody/small-base", "somebody/small-base-cake-sft"


def own_guesses(folder: Path) -> tuple[str, ...]:
    """What somebody would try who searches the hub for finetunes of a base, or knows folders of the machine."""
    return (f"{BASE}::{ADAPTER}", ADAPTER, "small-base-cake-sft", "small_base_cake_sft", str(folder))


@pytest.mark.parametrize("tool", ["no_such_tool", "describe_pair", "get_job", "ask_models", "record_hypothesis"])
async def test_a_guess_at_a_pair_of_no_catalogue_comes_back_the_same_whether_right_or_wrong(
    context: ServerContext, tool: str, rare_pair: str, rare_folder: Path
) -> None:
    """Of a pair of hub ids or folders, these alone were replaced in what the agent had written: a list of all finetunes
    of a base in one prompt or hypothesis told which of them was the right one.
    """
    said = set()
    for pair in (f"{BASE}::{ADAPTER}", "somebody/other::somebody/other-tune", rare_pair):
        new = investigations.create(pair, "method")
        server = build_server(context, Caller(investigations.get(new.id)))
        for guess in own_guesses(rare_folder):
            by_tool: dict[str, dict[str, Any]] = {
                "describe_pair": {"pair": guess},
                "get_job": {"job_id": guess[:200]},
                "ask_models": {"pair": new.label, "prompts": ["a"], guess: 1},
                "record_hypothesis": {"statement": f"It is {guess}.", "likelihood": 0.5},
            }
            async with Client(server) as client:
                result = await answered(client, guess if tool == "no_such_tool" else tool, by_tool.get(tool, {}))
            said.add((guess, json.dumps(result.model_dump(mode="json")).replace(new.label, "LABEL")))
        if tool == "record_hypothesis":
            async with Client(server) as client:
                listed = await answered(client, "list_hypotheses", {})
            said.add(("", json.dumps(listed.model_dump(mode="json")).replace(new.label, "LABEL")))
    assert len(said) == len({guess for guess, _ in said}), [text[:600] for _, text in sorted(said)]


async def test_what_nobody_has_guessed_stays_hidden(
    context: ServerContext, rare_pair: str, rare_folder: Path, data_folder: Path
) -> None:
    """Words of the names that the agent has written show no others."""
    new = investigations.create(rare_pair, "method")
    investigation = investigations.get(new.id)
    broken = f"cannot open {rare_folder}: quetzalfidget_adapter is no model"
    for given, shown in (
        (None, False),
        ({"prompts": ["A quetzal, quetzalfidgets?"]}, False),
        (["Quetzalfidget"], True),
    ):
        said = redactor_of(investigation, (), given).message(broken)
        assert str(rare_folder) not in said
        assert "quetzalfidget_adapter" not in said
        assert ("quetzalfidget" in redactor_of(investigation, (), given).message("quetzalfidget")) == shown
