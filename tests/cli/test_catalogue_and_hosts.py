"""Pairs, organisms, investigations and host configurations from the command line."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from diffing_mcp.cli.config import HostName
from diffing_mcp.mcp_server.host_config import HOSTS, host_config
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


def test_a_token_from_creation_to_its_end(diffing: Diffing) -> None:
    made = diffing("tokens", "new", "ci", "--tools", "default,kl", "--read-only", "--requests-per-minute", "60")
    assert made.code == 0, made.err
    token = made.out.strip()
    assert token.startswith("diffing_")
    [listed] = json.loads(diffing("tokens", "list", "--json").out)
    assert listed["grant"]["requests_per_minute"] == 60
    assert {"overview", "kl"} <= set(listed["grant"]["tools"])
    assert "pca" not in listed["grant"]["tools"]
    assert token not in diffing("tokens", "list").out
    assert diffing("tokens", "new", "other", "--tools", "no_such_tool").code == 2
    assert diffing("tokens", "revoke", "ci").code == 0
    assert "revoked" in diffing("tokens", "list").out
    assert json.loads(diffing("tokens", "calls", "--json").out) == []


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


def test_the_command_knows_every_host() -> None:
    assert [host.value for host in HostName] == list(HOSTS)


@pytest.mark.parametrize("host", HOSTS)
def test_the_entry_is_printed_with_where_to_put_it(diffing: Diffing, host: str) -> None:
    outcome = diffing("config", "--host", host)
    shown = tomllib.loads(outcome.out) if host == "codex" else json.loads(outcome.out)
    assert shown == host_config(host)
    assert HOSTS[host].file().name in outcome.err


@pytest.mark.parametrize("host", HOSTS)
def test_the_entry_is_written_on_request(
    diffing: Diffing, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HOME", "XDG_CONFIG_HOME", "CODEX_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    outcome = diffing("config", "--host", host, "--write")
    assert outcome.code == 0, outcome.err
    text = HOSTS[host].file().read_text()
    assert (tomllib.loads(text) if host == "codex" else json.loads(text)) == host_config(host)
    assert tmp_path in HOSTS[host].file().absolute().parents
    again = diffing("config", "--host", host, "--write", "--url", "http://127.0.0.1:8931/mcp", "--token", "t0ken")
    assert "t0ken" in HOSTS[host].file().read_text()
    assert "version control" in again.err
    assert ".before-diffing" in again.err


def test_secrets_that_an_entry_lacks_are_named(diffing: Diffing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFING_KEY_LAB", "sesame")
    outcome = diffing("config", "--host", "vscode")
    assert "DIFFING_KEY_LAB" in outcome.err
    assert "sesame" not in outcome.out + outcome.err


def test_an_unknown_host_is_refused_with_those_there_are(diffing: Diffing) -> None:
    outcome = diffing("config", "--host", "emacs")
    assert outcome.code == 2
    assert "claude-desktop" in outcome.err


def test_methods_are_listed_with_their_schemas(diffing: Diffing) -> None:
    methods = json.loads(diffing("methods", "--json").out)
    assert {"kl", "logit_diff_topk_occurring", "perplexity_difference", "activation_difference_lens"} <= set(methods)
    assert "diff_mining" in methods["logit_diff_topk_occurring"]["aliases"]
    assert all(method["parameters"]["type"] == method["result"]["type"] == "object" for method in methods.values())
