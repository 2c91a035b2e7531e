"""An overview in parts: what is finished is handed over and can be read while the rest goes on; it is done once."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from mcp import Client

from diffing_mcp.core.errors import Cancelled
from diffing_mcp.mcp_server.call import fenced_parts, most_telling
from diffing_mcp.mcp_server.jobs import Part
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.methods.registry import get_method
from tests.mcp_server.answers import answered, good, text_of

METHODS = {"methods": ["kl", "weight_difference"], "max_samples": 24, "max_tokens": 12}


@pytest.fixture
def held_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """weight_difference goes on only when this is set; meanwhile it reports, as between batches."""
    go, method = threading.Event(), get_method("weight_difference")
    run: Callable[..., Any] = type(method).run

    def waits(self: Any, pair: Any, params: Any, staged: Any, progress: Any) -> Any:
        while not go.wait(0.02):
            progress(0, 10, "held back")
        return run(self, pair, params, staged, progress)

    monkeypatch.setattr(type(method), "run", waits)
    yield go
    go.set()


async def until_kl_is_there(client: Client, pair: str) -> Any:
    """The first answer that hands over a part, and every share done on the way."""
    answer = await answered(client, "overview", {"pair": pair, **METHODS, "wait_seconds": 0})
    shares = []
    while True:
        content = answer.structured_content or {}
        assert content["status"] == "running", text_of(answer)
        shares.append(content["job"].get("progress") or 0.0)
        if content["job"]["parts"]:
            assert shares == sorted(shares)
            return answer
        answer = await answered(client, "get_job", {"job_id": content["job"]["job_id"], "wait_seconds": 1})


async def test_a_finished_method_is_handed_over_while_the_rest_goes_on(
    modern: Client, pair_name: str, held_back: threading.Event
) -> None:
    answer = await until_kl_is_there(modern, pair_name)
    job = (answer.structured_content or {})["job"]
    (part,) = job["parts"]
    assert (part["name"], part["run_id"].startswith("kl-")) == ("kl", True)
    text = text_of(answer)
    assert f"kl [{part['run_id']}]" in text
    assert (part["stands_out"], part["p"]) == (None, None)  # how much changed is no verdict
    assert part["headline"] in text.partition("<untrusted-")[2]  # a headline may quote the models
    assert "2 of 2: weight_difference" in text
    # What a caller was told is not told again, unless it asks for everything.
    again = text_of(await answered(modern, "get_job", {"job_id": job["job_id"], "wait_seconds": 0}))
    assert "Nothing new since you looked; 1 finished so far" in again
    assert part["headline"] not in again
    every = text_of(await answered(modern, "get_job", {"job_id": job["job_id"], "wait_seconds": 0, "everything": True}))
    assert part["headline"] in every.partition("<untrusted-")[2]
    opened = await answered(modern, "view_run", {"run": part["run_id"]})
    assert re.search(r"p \d\.\d{3} among ", text_of(opened))
    assert "level from another base" in text_of(opened)
    asked = await good(modern, "compare_text", {"pair": pair_name, "text": "a question meanwhile"})
    assert asked["status"] == "completed"
    told: list[tuple[float, str | None]] = []

    async def watch(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, message))
        held_back.set()

    last = await answered(modern, "get_job", {"job_id": job["job_id"]}, progress_callback=watch)
    assert (last.structured_content or {})["status"] == "completed", text_of(last)
    assert told == sorted(told, key=lambda each: each[0])
    assert "kl found" in (told[0][1] or "")


def test_what_stands_out_is_to_be_read_meanwhile() -> None:
    def part(name: str, stands_out: bool | None, p: float | None) -> Part:
        return Part(name=name, run_id=f"{name}-1", headline="", stands_out=stands_out, p=p)

    size, nothing = part("kl", None, None), part("pca", False, 0.6)
    assert most_telling([size, nothing]) is nothing
    assert most_telling([size, part("facts", None, None)]).name == "facts"
    found = part("openings", True, 0.04)
    assert most_telling([size, part("mining", True, 0.2), found, nothing]) is found
    few = part("lens", False, 0.095)
    lines = fenced_parts([found, few, nothing, size])
    for said in ("openings [openings-1] STANDS OUT, p 0.040", "lens [lens-1] few nulls show as much, p 0.095",
                 "pca [pca-1] nothing beyond nulls, p 0.600", "kl [kl-1]\n"):  # fmt: skip
        assert said in lines


async def test_what_an_overview_finished_is_reused_and_said(
    modern: Client, pair_name: str, held_back: threading.Event, context: ServerContext
) -> None:
    job = ((await until_kl_is_there(modern, pair_name)).structured_content or {})["job"]
    await answered(modern, "cancel_job", {"job_id": job["job_id"]})
    answer = await answered(modern, "overview", {"pair": pair_name, **METHODS, "wait_seconds": 0})
    assert "1 of 2 methods are finished already and are reused." in text_of(answer)
    estimate = await answered(modern, "overview", {"pair": pair_name, **METHODS, "estimate_only": True})
    assert "1 of 2 methods are finished already" in text_of(estimate)
    again = context.jobs.get((answer.structured_content or {})["job"]["job_id"], None)
    held_back.set()
    await context.jobs.wait(again, 20)
    assert [part.name for part in again.parts] == ["kl", "weight_difference"]
    assert again.parts[0].run_id == job["parts"][0]["run_id"]


async def test_an_ending_server_tells_who_waits_at_once(
    modern: Client, pair_name: str, held_back: threading.Event, context: ServerContext
) -> None:
    job = ((await until_kl_is_there(modern, pair_name)).structured_content or {})["job"]
    waiting = asyncio.create_task(answered(modern, "get_job", {"job_id": job["job_id"]}))
    known = context.jobs.get(job["job_id"], None)
    while not known.waiters:
        await asyncio.sleep(0)
    assert await asyncio.to_thread(context.close, 5)
    assert isinstance(known.error, Cancelled)
    assert "shutting down" in text_of(await waiting)
