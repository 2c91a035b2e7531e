"""Tools about stored activations: for operators only, and an investigation reads those of its own pair alone."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from diffing_mcp.core.errors import UnknownName
from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.auth import Caller
from diffing_mcp.mcp_server.call import Call
from diffing_mcp.mcp_server.declarations import tool_names
from diffing_mcp.mcp_server.serve import build_server
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.mcp_server.tools_methods import check_activations
from diffing_mcp.mcp_server.toolset import toolset
from diffing_mcp.model_pairs.resolve import resolve_pair
from diffing_mcp.preprocessing import activation_collection
from diffing_mcp.preprocessing.activation_sources import ActivationSourceParams
from diffing_mcp.preprocessing.activation_store import default_activation_store
from tests.mcp_server.answers import good, held, refused

SMALL = {"max_samples": 12, "max_tokens": 10, "layers": [0, 1.0]}
TOOLS = ("collect_activations", "list_activations", "describe_activations", "delete_activations")


@pytest.fixture
async def operator(context: ServerContext) -> AsyncIterator[Client]:
    async with held(Client(build_server(context))) as client:
        yield client


async def test_an_operator_collects_lists_describes_and_deletes(
    operator: Client, pair_name: str, data_folder: Path
) -> None:
    estimated = await good(operator, "collect_activations", {"pair": pair_name, **SMALL, "estimate_only": True})
    assert estimated["status"] == "estimate"
    assert (await good(operator, "list_activations", {}))["result"]["total"] == 0
    made = (await good(operator, "collect_activations", {"pair": pair_name, **SMALL}))["result"]
    assert made["finished"]
    assert 0 < 1e6 * made["megabytes"] < 2 * estimated["estimate"]["bytes"]
    again = await good(operator, "collect_activations", {"pair": pair_name, **SMALL})
    assert (again["result"], "job" in again) == (made, False)
    assert (await good(operator, "list_activations", {"pair": pair_name}))["result"]["collections"] == [made]
    described = (await good(operator, "describe_activations", {"id": made["id"], "check": True}))["result"]
    assert described["damaged"] == []
    assert [size["layer"] for size in described["sizes"]] == made["layers"] == [0, 2]
    for wrong in (made["id"][:14], "activations-ffffffffffff", "../../runs", "*"):
        await refused(operator, "delete_activations", {"id": wrong})
    assert (await good(operator, "delete_activations", {"id": made["id"]}))["result"]["deleted"] == made["id"]
    assert not list((data_folder / "activations").glob("*/index.json"))
    # Not answered from the job that made the deleted one, however often.
    for _ in range(2):
        assert (await good(operator, "collect_activations", {"pair": pair_name, **SMALL}))["result"]["id"] == made["id"]
        assert (await good(operator, "list_activations", {}))["result"]["total"] == 1
        await good(operator, "delete_activations", {"id": made["id"]})


async def test_a_collection_whose_index_is_broken_is_listed_and_deleted(operator: Client, data_folder: Path) -> None:
    folder = default_activation_store().folder / ("cd" * 32)
    folder.mkdir(parents=True)
    (folder / "index.json").write_text("{")
    [row] = (await good(operator, "list_activations", {}))["result"]["collections"]
    assert (row["id"], row["broken"]) == (f"activations-{'cd' * 6}", True)
    assert "Delete it" in await refused(operator, "describe_activations", {"id": row["id"]})
    assert (await good(operator, "delete_activations", {"id": row["id"]}))["result"]["deleted"] == row["id"]
    assert not folder.exists()


async def test_without_room_it_is_refused(operator: Client, pair_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_collection, "SPARE_BYTES", 2**60)
    assert "MiB of disk" in await refused(operator, "collect_activations", {"pair": pair_name, **SMALL})
    assert (await good(operator, "list_activations", {}))["result"]["total"] == 0


async def test_files_outside_of_the_data_folder_are_refused(operator: Client, pair_name: str, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("a b c\n\nd e f")
    assert "data folder" in await refused(
        operator, "collect_activations", {"pair": pair_name, "corpus": str(tmp_path / "secret.txt")}
    )


async def test_an_investigation_has_none_of_the_tools(context: ServerContext, pair_name: str) -> None:
    assert not set(TOOLS) & set(tool_names(toolset()))
    new = investigations.create(pair_name, "method")
    async with Client(build_server(context, Caller(investigations.get(new.id)))) as client:
        offered = {row["name"] for row in (await good(client, "more_tools", {}))["result"]["tools"]}
        for tool in TOOLS:
            assert tool not in offered
            assert "there is no tool" in await refused(client, tool, {"pair": new.label})


async def test_an_investigation_reads_activations_of_its_own_pair_on_bundled_text_only(
    context: ServerContext, operator: Client, pair_name: str, rare_pair: str, data_folder: Path
) -> None:
    local = data_folder / "quetzalfidget.jsonl"
    local.parent.mkdir(exist_ok=True)
    local.write_text("\n".join(json.dumps({"text": "rivers run to the sea and boats go by"}) for _ in range(9)))
    made: dict[str, Any] = {}
    for name, pair, corpus in (
        ("mine", rare_pair, "unrelated_texts"),
        ("other pair", pair_name, "unrelated_texts"),
        ("named corpus", rare_pair, str(local)),
    ):
        made[name] = (await good(operator, "collect_activations", {"pair": pair, "corpus": corpus, **SMALL}))["result"][
            "id"
        ]
    new = investigations.create(rare_pair, "method")
    server = build_server(context, Caller(investigations.get(new.id)))
    tool = server.offer.tools["kl"]
    call = Call(context, Caller(investigations.get(new.id)), tool, tool.Arguments(pair=new.label), server.offer)
    spec = resolve_pair(rare_pair)
    await check_activations(call, spec, ActivationSourceParams(activations=made["mine"]))
    await check_activations(call, spec, ActivationSourceParams())
    said = set()
    for identifier in (
        made["other pair"],
        made["named corpus"],
        made["mine"][:-2],
        "activations-000000000000",
        "../../etc/passwd",
    ):
        with pytest.raises(UnknownName) as refusal:
            await check_activations(call, spec, ActivationSourceParams(activations=identifier))
        said.add(str(refusal.value).replace(identifier, "ID"))
    assert len(said) == 1, "whether a collection exists is not told"
    assert "quetzalfidget" not in said.pop()
    with pytest.raises(UnknownName, match=made["other pair"]):
        await check_activations(call, spec, ActivationSourceParams(activations=f"{made['mine']},{made['other pair']}"))
    index = default_activation_store().get(made["mine"])
    index.finished = False
    (default_activation_store().folder / index.key / "index.json").write_text(index.model_dump_json())
    with pytest.raises(UnknownName):
        await check_activations(call, spec, ActivationSourceParams(activations=made["mine"]))
