"""`python -m benchmarks.load [--minutes N] [--clients N]`: many clients that call at once, hang up and read slowly, on
a server of its own with the bundled model. Fails when a slot leaks, a finished run is lost, or memory keeps growing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import re
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx2
import psutil
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

PAIR = "cake_bake"
WARM_UP = 1 / 3
"""Share of the time after which memory must stay: models are loaded, caches filled."""
ALLOWED_GROWTH = 0.02
SAMPLE_SECONDS = 2.0
SMALL = {"max_samples": 4, "max_tokens": 8}
JOB = re.compile(r'get_job\(job_id="([^"]+)"\)')
RUN = re.compile(r"^run: (\S+)$", re.MULTILINE)


@dataclass
class Seen:
    """What the clients saw, and the server's memory in time."""

    counts: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    runs: set[str] = field(default_factory=set)
    memory: list[tuple[float, int]] = field(default_factory=list)


async def call(client: Client, tool: str, arguments: dict[str, Any], seen: Seen) -> str:
    """One call; its text. Work that goes on is waited for twice more and then stopped, so that a slow machine has no
    endless queue. Runs that are named are remembered.
    """
    text = await answered(client, tool, arguments, seen)
    for attempt in range(3):
        if (job := JOB.search(text)) is None:
            break
        text = await answered(client, "get_job", {"job_id": job.group(1), "cancel": attempt == 2}, seen)
    return text


async def answered(client: Client, tool: str, arguments: dict[str, Any], seen: Seen) -> str:
    """The text of one answer, whose time is kept."""
    began = time.monotonic()
    result = await client.call_tool(tool, arguments)
    seen.waits.append(time.monotonic() - began)
    text = "\n".join(block.text for block in result.content if block.type == "text")
    if result.is_error:
        seen.errors[text.splitlines()[0][:100]] += 1
    seen.runs.update(RUN.findall(text))
    return text


async def well_behaved(url: str, draw: random.Random, seen: Seen) -> None:
    """A few calls in one connection: a lookup, a text, a method on new documents."""
    async with httpx2.AsyncClient(timeout=120) as web, Client(streamable_http_client(url, http_client=web)) as client:
        await client.list_tools()
        await call(client, "list_pairs", {"limit": 5}, seen)
        text = f"The oven was set to {draw.randrange(10_000)} degrees."
        await call(client, "compare_text", {"pair": PAIR, "text": text, "wait_seconds": 20}, seen)
        made = {"pair": PAIR, **SMALL, "seed": draw.randrange(10_000), "wait_seconds": 20}
        await call(client, "kl", made, seen)


async def hangs_up(url: str, draw: random.Random, seen: Seen) -> None:
    """Starts long work and leaves in the middle of the answer."""
    long = {"pair": PAIR, "max_samples": 500, "max_tokens": 30, "seed": draw.randrange(10**6), "wait_seconds": 45}
    with anyio.move_on_after(draw.uniform(0.05, 2)):
        async with (
            httpx2.AsyncClient(timeout=120) as web,
            Client(streamable_http_client(url, http_client=web)) as client,
        ):
            await client.call_tool("kl", long)


async def reads_slowly(url: str, draw: random.Random, seen: Seen) -> None:
    """Takes an answer in small pieces, and leaves when it has had enough."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "slow", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}}
    headers = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2026-07-28"}
    headers["Mcp-Method"] = "tools/list"
    async with (
        httpx2.AsyncClient(timeout=120) as web,
        web.stream("POST", url, json=body, headers=headers) as answer,
    ):
        async for _ in answer.aiter_raw(512):
            await asyncio.sleep(draw.uniform(0.05, 0.5))
            if draw.random() < 0.05:
                return


async def leaves_a_session(url: str, draw: random.Random, seen: Seen) -> None:
    """Opens a session of 2025 and goes without closing it."""
    info = {"name": "gone", "version": "1"}
    params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": info}
    headers = {"Accept": "application/json, text/event-stream"}
    async with httpx2.AsyncClient(timeout=60) as web:
        body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
        await web.post(url, json=body, headers=headers)


KINDS = (well_behaved, well_behaved, well_behaved, hangs_up, reads_slowly, leaves_a_session)


async def client(url: str, number: int, until: float, seen: Seen) -> None:
    """One client after another in the same place, each of a drawn kind."""
    draw = random.Random(number)
    while time.monotonic() < until:
        kind = draw.choice(KINDS)
        try:
            async with asyncio.timeout(300):
                await kind(url, draw, seen)
        except Exception as error:
            seen.errors[f"{kind.__name__}: {_leaf(error)!r}"[:100]] += 1
        seen.counts[kind.__name__] += 1
        await asyncio.sleep(draw.uniform(0, 0.5))


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def watch(process: psutil.Process, seen: Seen) -> None:
    """The server's resident memory, until cancelled."""
    while True:
        with suppress(psutil.NoSuchProcess):
            seen.memory.append((time.monotonic(), process.memory_info().rss))
        await asyncio.sleep(SAMPLE_SECONDS)


async def live_jobs(url: str) -> int:
    """Jobs that run or wait on the server."""
    async with httpx2.AsyncClient(timeout=60) as web:
        text = (await web.get(url.removesuffix("/mcp") + "/metrics")).text
    found = re.findall(r'^diffing_jobs\{state="(?:queued|running)"\} (\S+)$', text, re.MULTILINE)
    return sum(int(float(count)) for count in found)


async def lost_runs(url: str, seen: Seen) -> list[str]:
    """Runs that an answer named and the server has no more."""
    async with Client(url) as reader:
        [listed] = (await reader.read_resource("diffing://runs")).contents
    kept = {run["id"] for run in json.loads(getattr(listed, "text", "[]"))}
    return sorted(seen.runs - kept)


async def started(folder: Path) -> tuple[asyncio.subprocess.Process, str]:
    """A server on a free port with a data folder of its own, and its address."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "diffing_mcp.cli.main", "serve", "--http", "--port", "0"),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "DIFFING_DATA_FOLDER": str(folder)},
    )
    assert process.stderr is not None
    while line := (await process.stderr.readline()).decode():
        if found := re.search(r"serving MCP on (\S+)", line):
            return process, found.group(1)
    raise SystemExit("the server did not start")


def growth(seen: Seen, began: float, ended: float) -> tuple[float, float, float]:
    """Megabytes after the warm-up and at the end (medians of a fifth of the rest each), and the share it grew by."""
    since = began + WARM_UP * (ended - began)
    kept = [size / 1e6 for when, size in seen.memory if since <= when <= ended]
    part = max(1, len(kept) // 5)
    first, last = statistics.median(kept[:part]), statistics.median(kept[-part:])
    return first, last, last / first - 1


async def load(minutes: float, clients: int) -> int:
    """Run it and print the table; the exit code."""
    seen = Seen()
    with tempfile.TemporaryDirectory() as folder:
        process, url = await started(Path(folder))
        assert process.stderr is not None
        draining = asyncio.create_task(process.stderr.read())
        async with Client(url) as first:
            await call(first, "compare_text", {"pair": PAIR, "text": "The oven is warm.", "wait_seconds": 50}, seen)
        watching = asyncio.create_task(watch(psutil.Process(process.pid), seen))
        began = time.monotonic()
        await asyncio.gather(*(client(url, number, began + 60 * minutes, seen) for number in range(clients)))
        ended = time.monotonic()
        for _ in range(120):
            if (left := await live_jobs(url)) == 0:
                break
            await asyncio.sleep(1)
        lost = await lost_runs(url, seen)
        async with Client(url) as last:
            after = await call(last, "compare_text", {"pair": PAIR, "text": "free?", "wait_seconds": 50}, seen)
        watching.cancel()
        process.send_signal(signal.SIGTERM)
        code = await asyncio.wait_for(process.wait(), 30)
        log = (await draining).decode(errors="replace")
    first_mb, last_mb, grown = growth(seen, began, ended)
    waits = sorted(seen.waits)
    rows = [
        ("clients, minutes", f"{clients}, {(ended - began) / 60:.1f}"),
        *((kind, f"{count}") for kind, count in sorted(seen.counts.items())),
        ("calls answered", f"{len(waits)}, median {statistics.median(waits):.2f} s, longest {waits[-1]:.1f} s"),
        ("jobs left when all had gone", f"{left}"),
        ("slot free afterwards", "yes" if "mean KL" in after else "no"),
        ("finished runs told, lost", f"{len(seen.runs)}, {len(lost)}"),
        ("memory after the warm-up, at the end", f"{first_mb:.0f} MB, {last_mb:.0f} MB ({grown:+.1%})"),
        ("ended with", f"{code}"),
        ("tracebacks in the log", f"{log.count('Traceback')}"),
        *(
            (f"log: {line[:90]}", "")
            for line in re.findall(r"^\w+(?:\.\w+)*(?:Error|Exception)\b.*", log, re.MULTILINE)[:5]
        ),
        *((f"error: {error}", f"{count}") for error, count in seen.errors.most_common(8)),
    ]
    for name, value in rows:
        print(f"{name:<40} {value}")
    failed = left or lost or grown > ALLOWED_GROWTH or "mean KL" not in after or code != 0
    print("FAILED" if failed else "passed")
    return 1 if failed else 0


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=64)
    options = parser.parse_args()
    # What clients that hang up log of themselves says nothing of the server.
    logging.disable(logging.CRITICAL)
    raise SystemExit(asyncio.run(load(options.minutes, options.clients)))


if __name__ == "__main__":
    main()
