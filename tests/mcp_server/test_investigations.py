"""Investigations: tokens, tool sets, hypotheses and findings, records."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from mcp import Client, MCPError

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.mcp_server import access_tokens, findings, investigations
from diffing_mcp.mcp_server.access_tokens import Grant
from diffing_mcp.mcp_server.auth import Caller
from diffing_mcp.mcp_server.database import database_path
from diffing_mcp.mcp_server.declarations import tool_names
from diffing_mcp.mcp_server.findings import Evidence
from diffing_mcp.mcp_server.jobs import Job
from diffing_mcp.mcp_server.serve import build_server
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.mcp_server.toolset import toolset
from tests.mcp_server.answers import good, refused

KNOWN = tool_names(toolset())


def test_a_token_opens_its_investigation_and_nothing_else_does(data_folder: Path, pair_name: str) -> None:
    new = investigations.create(pair_name, "blackbox", interactions=7, tool_calls=9, note="arm a")
    found = investigations.authenticate(new.token)
    assert found is not None
    assert (found.id, found.label, found.pair, found.interactions, found.tool_calls, found.note) == (
        new.id,
        new.label,
        pair_name,
        7,
        9,
        "arm a",
    )
    other = investigations.create(pair_name)
    mixed = f"{new.id}.{other.token.partition('.')[2]}"
    for wrong in (
        "",
        ".",
        new.id,
        new.token + "x",
        new.token[:-1],
        new.token.upper(),
        mixed,
        "%",
        "' OR 1=1 --",
        "\x00",
        "é" * 50,
    ):
        assert investigations.authenticate(wrong) is None


async def test_over_stdio_too_a_token_ends_with_its_investigation(
    context: ServerContext, pair_name: str, data_folder: Path
) -> None:
    new = investigations.create(pair_name)
    access_tokens.create(Grant(name="ana"))
    confined, named = Caller(investigations.authenticate(new.token)), Caller(grant=Grant(name="ana"))
    async with Client(build_server(context, confined)) as client, Client(build_server(context, named)) as other:
        for each in (client, other):
            assert not (await each.call_tool("list_pairs", {})).is_error
        investigations.close(new.id)
        access_tokens.revoke("ana")
        for each, said in ((client, "closed"), (other, "revoked")):
            assert said in await refused(each, "list_pairs", {})
            with pytest.raises(MCPError):
                await each.list_tools()


async def test_the_work_of_an_investigation_ends_with_it(context: ServerContext, pair_name: str) -> None:
    def endless(job: Job) -> None:
        while True:
            job(0, None, "on")

    new = investigations.create(pair_name)
    job, others = (context.jobs.submit("kl", scope, 1, endless) for scope in (new.id, "operator"))
    async with Client(build_server(context)) as client:
        await good(client, "close_investigation", {"investigation": new.label})
    assert job.finished.wait(10)
    assert job.state == "cancelled"
    assert others.state != "cancelled"
    context.jobs.cancel(others)


def test_only_the_digest_of_a_token_is_stored(data_folder: Path, pair_name: str) -> None:
    new = investigations.create(pair_name)
    secret = new.token.partition(".")[2].encode()
    assert len(secret) >= 43
    stored = b"".join(path.read_bytes() for path in database_path().parent.glob("investigations.sqlite*"))
    assert secret not in stored
    assert new.id.encode() in stored


def test_closing_ends_access_and_keeps_the_record(data_folder: Path, pair_name: str) -> None:
    new = investigations.create(pair_name)
    investigations.close(new.label)
    assert investigations.authenticate(new.token) is None
    assert investigations.show(new.id).investigation.closed is not None


def test_labels_are_opaque_and_unique(data_folder: Path, pair_name: str) -> None:
    labels = [investigations.create(pair_name).label for _ in range(30)]
    assert len(set(labels)) == 30
    assert all(label.startswith("pair-") and len(label) < 25 for label in labels)


def test_tool_sets(data_folder: Path, pair_name: str) -> None:
    blackbox = investigations.get(investigations.create(pair_name, "blackbox").id)
    assert all(blackbox.allows(tool) for tool in ("ask_models", "sweep_behaviours", "view_run"))
    assert not any(blackbox.allows(tool) for tool in ("kl", "overview", "compare_text", "list_runs"))
    method = investigations.get(investigations.create(pair_name, "method").id)
    assert all(method.allows(tool) for tool in ("ask_models", "kl", "overview", "view_run"))
    named = investigations.get(investigations.create(pair_name, "kl, view_run", known_tools=KNOWN).id)
    assert named.allows("kl")
    assert named.allows("submit_finding")
    assert not named.allows("ask_models")


def test_bad_creations(data_folder: Path, pair_name: str) -> None:
    with pytest.raises(UnknownName):
        investigations.create("no_such_organism_at_all")
    with pytest.raises(UnknownName, match="unknown tools: nonsense"):
        investigations.create(pair_name, "kl,nonsense", known_tools=KNOWN)
    with pytest.raises(UnknownName):
        investigations.create(pair_name, [], known_tools=KNOWN)
    with pytest.raises(UnknownName):
        investigations.create(pair_name, "unload_pair", known_tools=KNOWN)
    with pytest.raises(InvalidInput):
        investigations.create(pair_name, interactions=-1)
    with pytest.raises(InvalidInput, match="1,000,000"):  # was an OverflowError of SQLite
        investigations.create(pair_name, tool_calls=10**20)
    assert investigations.list_investigations() == []


def test_get_takes_labels_and_unambiguous_beginnings(data_folder: Path, pair_name: str) -> None:
    new = investigations.create(pair_name)
    assert investigations.get(new.id[:8]).id == investigations.get(new.label).id == new.id
    for wrong in ("", "%", "_", "nobody"):
        if wrong or len(investigations.list_investigations()) != 1:
            with pytest.raises(UnknownName):
                investigations.get(wrong)


def test_hypotheses_are_kept_and_changed_by_number(data_folder: Path) -> None:
    first = findings.record_hypothesis(
        "a", "about cakes", 0.4, evidence=[Evidence(source="kl-1f3a9c", note="cake words rise")]
    )
    second = findings.record_hypothesis("a", "nothing", 0.2)
    changed = findings.record_hypothesis(
        "a", None, 0.9, "confirmed", "asked", [Evidence(source="prompt")], number=first.number
    )
    assert (changed.statement, changed.likelihood, changed.status, len(changed.evidence)) == (
        "about cakes",
        0.9,
        "confirmed",
        2,
    )
    assert [item.number for item in findings.list_hypotheses("a")] == [first.number, second.number]
    assert findings.record_hypothesis("b", "other", 0.5).number == 1
    with pytest.raises(UnknownName):
        findings.record_hypothesis("a", "x", 0.5, number=99)
    with pytest.raises(InvalidInput):
        findings.record_hypothesis("a", "x", None)
    with pytest.raises(InvalidInput):
        findings.record_hypothesis("a", None, 0.5)


def test_a_finding_is_given_once(data_folder: Path) -> None:
    findings.submit_finding("a", "no_meaningful_difference", "nothing", 0.8)
    with pytest.raises(InvalidInput, match="once"):
        findings.submit_finding("a", "difference", "cakes", 0.8)
    assert [finding.verdict for finding in findings.list_findings("a")] == ["no_meaningful_difference"]
    findings.submit_finding("operator", "difference", "one", 0.5)
    findings.submit_finding("operator", "difference", "two", 0.5)
    assert len(findings.list_findings("operator")) == 2


def test_the_database_works_with_two_connections_at_once(data_folder: Path, pair_name: str) -> None:
    investigations.create(pair_name)
    reader = sqlite3.connect(database_path())
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM investigations").fetchone()[0] == 1
    investigations.create(pair_name)
    assert len(investigations.list_investigations()) == 2
    reader.close()


async def test_an_investigation_names_vectors_of_its_own_runs_only(context: ServerContext, pair_name: str) -> None:
    lens = {"max_samples": 8, "max_tokens": 8, "layers": [1]}
    first, second = (
        investigations.get(investigations.create(pair_name, "method", interactions=10, tool_calls=50).id)
        for _ in range(2)
    )
    async with Client(build_server(context, Caller(first))) as client:
        run = (await good(client, "activation_difference_lens", {"pair": first.label, **lens}))["run_id"]
        vector = f"{run}/1:all:difference"
        answer = await good(
            client, "patchscope", {"pair": first.label, "vector": vector, "random_directions": 4, "scales": [1.0]}
        )
        assert answer["result"]["layer"] == 1
        assert "whole id" in await refused(
            client, "patchscope", {"pair": first.label, "vector": f"{run[:-2]}/1:all:difference"}
        )
        assert "no vectors" in await refused(
            client, "patchscope", {"pair": first.label, "vector": f"{answer['run_id']}/x"}
        )
    async with Client(build_server(context, Caller(second))) as client:
        said = await refused(client, "patchscope", {"pair": second.label, "vector": vector})
        assert "has no runs yet" in said
        said = await refused(
            client, "causal_effect", {"pair": second.label, "vectors": [{"token": "e"}, vector], "estimate_only": True}
        )
        assert "has no runs yet" in said
