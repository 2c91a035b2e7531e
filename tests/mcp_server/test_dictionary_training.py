"""Training a dictionary through the server: live loss, cancelling, going on."""

from __future__ import annotations

import asyncio
from typing import Any

from mcp import Client

from mcp_server.serve import build_server
from mcp_server.workbench import Workbench
from methods.dictionaries.stored import listing
from tests.mcp_server.answers import good, held

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


async def test_a_training_is_watched_cancelled_and_ended(workbench: Workbench, tiny_pair: str) -> None:
    async with held(Client(build_server(workbench))) as client:

        async def job_of(identifier: str) -> dict[str, Any]:
            answer = await client.call_tool("get_job", {"job_id": identifier, "wait_seconds": 0})
            assert not answer.is_error
            assert answer.structured_content is not None
            job: dict[str, Any] = answer.structured_content["job"]
            return job

        started = await client.call_tool("sae_difference", {"pair": tiny_pair, **PARAMS, "wait_seconds": 0})
        assert started.structured_content is not None
        identifier = started.structured_content["job"]["job_id"]
        job = await job_of(identifier)
        for _ in range(1000):
            if job["message"].startswith("loss "):
                break
            await asyncio.sleep(0.02)
            job = await job_of(identifier)
        assert job["message"].startswith("loss ")
        done = round(job["progress"] * STEPS)
        assert 0 < done < STEPS
        cancelled = await good(client, "cancel_job", {"job_id": identifier})
        assert cancelled["result"]["jobs"][0]["state"] == "cancelled"
        [left] = listing().leftovers
        assert left.state == "unfinished"
        assert left.steps is not None
        assert done <= left.steps < STEPS
        ended = await good(client, "sae_difference", {"pair": tiny_pair, **PARAMS})
        assert ended["result"]["training"]["steps"] == STEPS
        assert listing().leftovers == []
        assert len(listing().dictionaries) == 1
