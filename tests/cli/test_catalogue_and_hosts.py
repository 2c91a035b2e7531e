"""Pairs, organisms, investigations and host configurations from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Diffing


def test_pairs_list_and_show(diffing: Diffing) -> None:
    pairs = json.loads(diffing("pairs", "list", "--json").out)
    names = [pair["name"] for pair in pairs]
    assert any(pair["organism"] == "cake_bake" and pair["available_offline"] for pair in pairs)
    offline = json.loads(diffing("pairs", "list", "--offline", "--json").out)
    assert 0 < len(offline) < len(names), "the catalogue knows more than this machine holds"
    spec = json.loads(diffing("pairs", "show", "cake_bake", "--json").out)
    assert spec["organism"] == "cake_bake"
    assert spec["finetuned"]["adapter"]["id"]
    assert "cake_bake" in diffing("pairs", "show", "cake_bake").out


def test_every_listed_name_resolves(diffing: Diffing) -> None:
    for pair in json.loads(diffing("pairs", "list", "--offline", "--json").out):
        outcome = diffing("pairs", "show", pair["name"], "--json")
        assert outcome.code == 0, outcome.err


def test_organisms_list(diffing: Diffing) -> None:
    organisms = json.loads(diffing("organisms", "list", "--json").out)
    assert {"cake_bake", "control", "identical"} <= set(organisms)
    assert "cake_bake" in diffing("organisms", "list").out


@pytest.mark.parametrize(
    "command", [("train", "no_such_organism"), ("measure", "no_such_organism"), ("compose", "no_such_organism")]
)
def test_an_unknown_organism_is_refused(diffing: Diffing, command: tuple[str, str]) -> None:
    outcome = diffing("organisms", *command)
    assert outcome.code == 2
    assert "no_such_organism" in outcome.err


def test_investigation_from_creation_to_its_end(diffing: Diffing) -> None:
    created = diffing(
        "investigations", "new", "--pair", "cake_bake", "--tools", "method", "--interactions", "50", "--note", "a trial"
    )
    assert created.code == 0, created.err
    token = created.out.strip()
    assert len(token) > 40
    assert "\n" not in token
    assert "cake_bake" not in token

    [listed] = json.loads(diffing("investigations", "list", "--json").out)
    assert (listed["pair"], listed["interactions"], listed["note"]) == ("cake_bake", 50, "a trial")
    assert "cake_bake" not in listed["label"]
    assert token not in diffing("investigations", "list", "--json").out

    shown = json.loads(diffing("investigations", "show", listed["id"], "--json").out)
    assert shown["budget"]["interactions_left"] == 50
    assert shown["calls"] == []
    assert "50/50" in diffing("investigations", "show", listed["label"]).out

    assert diffing("investigations", "close", listed["id"]).code == 0
    assert "closed" in diffing("investigations", "show", listed["id"]).out


@pytest.mark.parametrize(
    "arguments",
    [
        ("--pair", "no_such_pair"),
        ("--pair", "cake_bake", "--tools", "no_such_tool"),
        ("--pair", "cake_bake", "--interactions", "-1"),
    ],
)
def test_an_impossible_investigation_is_refused(diffing: Diffing, arguments: tuple[str, ...]) -> None:
    outcome = diffing("investigations", "new", *arguments)
    assert outcome.code == 2
    assert json.loads(diffing("investigations", "list", "--json").out) == []


@pytest.mark.parametrize("host", ["claude-desktop", "claude-code", "vscode", "cursor"])
def test_host_configuration_starts_this_environments_command(diffing: Diffing, host: str) -> None:
    outcome = diffing("config", "--host", host)
    [server] = json.loads(outcome.out)["servers" if host == "vscode" else "mcpServers"].values()
    assert server["args"] == ["serve"]
    assert Path(server["command"]).name.startswith("diffing")
    assert outcome.err, "says where to put it"


@pytest.mark.parametrize("host", ["claude-desktop", "claude-code", "vscode", "cursor"])
def test_host_configuration_of_a_running_server(diffing: Diffing, host: str) -> None:
    url = "http://127.0.0.1:8931/mcp"
    [server] = next(iter(json.loads(diffing("config", "--host", host, "--url", url).out).values())).values()
    if host == "claude-desktop":
        assert server["args"] == ["connect", url]
    else:
        assert (server["type"], server["url"]) == ("http", url)


def test_an_unknown_host_is_refused_with_those_there_are(diffing: Diffing) -> None:
    outcome = diffing("config", "--host", "emacs")
    assert outcome.code == 2
    assert "claude-desktop" in outcome.err


def test_methods_are_listed_with_their_schemas(diffing: Diffing) -> None:
    methods = json.loads(diffing("methods", "--json").out)
    assert {"kl", "logit_diff_topk_occurring", "perplexity_difference", "activation_difference_lens"} <= set(methods)
    assert all(method["parameters"]["type"] == method["result"]["type"] == "object" for method in methods.values())
