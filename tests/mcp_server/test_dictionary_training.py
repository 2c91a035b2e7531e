"""Dictionaries through the server: live loss of a training, cancelling, going on; listing and deleting, for operators
only.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import torch
from mcp import Client

from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.auth import Caller
from diffing_mcp.mcp_server.declarations import tool_names
from diffing_mcp.mcp_server.serve import build_server
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.mcp_server.toolset import toolset
from diffing_mcp.methods.dictionaries.files import save_dictionary
from diffing_mcp.methods.dictionaries.models import Normalisation, SparseDictionary
from diffing_mcp.methods.dictionaries.recipe import TrainingRecipe
from diffing_mcp.methods.dictionaries.stored import StoredConfig, dictionaries_folder, dictionary_lock, listing
from tests.mcp_server.answers import answered, good, held, refused, text_of

STEPS = 1000
PARAMS = {
    "max_samples": 24,
    "max_tokens": 16,
    "layer": 1,
    "steps": STEPS,
    "patience": None,
    "batch_rows": 64,
    "k": 4,
    "expansion": 1,
    "read_latents": 2,
}


async def test_a_training_is_watched_cancelled_and_ended(context: ServerContext, pair_name: str) -> None:
    async with held(Client(build_server(context))) as client:
        training = asyncio.Event()

        async def watch(progress: float, total: float | None, message: str | None) -> None:
            if "loss " in (message or ""):
                training.set()

        started = await answered(client, "sae_difference", {"pair": pair_name, **PARAMS, "wait_seconds": 0})
        assert started.structured_content is not None
        identifier = started.structured_content["job"]["job_id"]
        watching = asyncio.create_task(answered(client, "get_job", {"job_id": identifier}, progress_callback=watch))
        await asyncio.wait_for(training.wait(), 60)
        seen = await answered(client, "get_job", {"job_id": identifier, "wait_seconds": 0})
        job = (seen.structured_content or {})["job"]
        assert "loss " in job["message"]
        assert 0 < job["progress"] < 1
        cancelled = await good(client, "cancel_job", {"job_id": identifier})
        assert cancelled["result"]["jobs"][0]["state"] == "cancelled"
        assert "cancelled" in text_of(await watching)
        [left] = listing().leftovers
        assert left.state == "unfinished"
        assert left.steps is not None
        assert 0 < left.steps < STEPS
        ended = await good(client, "sae_difference", {"pair": pair_name, **PARAMS})
        assert ended["result"]["training"]["steps"] == STEPS
        assert listing().leftovers == []
        assert len(listing().dictionaries) == 1


def stored(name: str) -> Path:
    """A finished SAE of 4 latents over 3 dimensions, in the folder of dictionaries."""
    recipe = TrainingRecipe(kind="sae", latents=4, k=1, steps=20, batch_rows=8, learning_rate=0.01)
    dictionary = SparseDictionary(
        torch.ones(3, 4),
        torch.zeros(4),
        torch.ones(4, 3),
        torch.zeros(3),
        torch.zeros(4),
        "none",
        Normalisation.none(3),
        1,
    )
    config = StoredConfig(recipe=recipe, layer=1, activation_dim=3, steps=20, stopped_early=False, curve=[])
    return save_dictionary(dictionary, dictionaries_folder() / name, config.model_dump(mode="json"))


async def test_an_operator_lists_and_deletes_dictionaries(context: ServerContext, data_folder: Path) -> None:
    whole, torn = stored("a1"), stored("a12")
    (torn / "config.json").write_text("{")
    (data_folder / "elsewhere").mkdir()
    async with held(Client(build_server(context))) as client:
        listed = (await good(client, "list_dictionaries", {}))["result"]
        assert ([each["id"] for each in listed["dictionaries"]], [each["id"] for each in listed["leftovers"]]) == (
            ["a1"],
            ["a12"],
        )
        page = (await good(client, "list_dictionaries", {"limit": 1}))["result"]
        assert (len(page["dictionaries"]), page["leftovers"], page["total"], page["next_offset"]) == (1, [], 2, 1)
        for wrong in ("a", "b1", "..", "../elsewhere", str(data_folder / "elsewhere"), ".lock-a1", "*"):
            assert "list_dictionaries" in await refused(client, "delete_dictionary", {"id": wrong})
        with dictionary_lock("a1"):
            assert "being trained" in await refused(client, "delete_dictionary", {"id": "a1"})
        assert whole.is_dir()
        deleted = (await good(client, "delete_dictionary", {"id": "a1"}))["result"]
        assert deleted["deleted"] == "a1"
        assert deleted["megabytes"] > 0
        assert not whole.exists()
        assert torn.is_dir()
        await good(client, "delete_dictionary", {"id": "a12"})
        assert (await good(client, "list_dictionaries", {}))["result"]["total"] == 0
        assert (data_folder / "elsewhere").is_dir()


async def test_an_investigation_can_neither_list_nor_delete_them(context: ServerContext, pair_name: str) -> None:
    folder = stored("a1")
    assert not {"list_dictionaries", "delete_dictionary"} & set(tool_names(toolset()))
    new = investigations.create(pair_name, "method")
    async with held(Client(build_server(context, Caller(investigations.get(new.id))))) as client:
        offered = {row["name"] for row in (await good(client, "more_tools", {}))["result"]["tools"]}
        for name, arguments in (("list_dictionaries", {}), ("delete_dictionary", {"id": "a1"})):
            assert name not in offered
            assert "there is no tool" in await refused(client, name, arguments)
    assert folder.is_dir()
