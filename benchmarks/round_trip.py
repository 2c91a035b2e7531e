"""What a call of a light tool costs from a client's view, over HTTP on the loopback and over stdio."""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from benchmarks.measurement import Measurement, Sizes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

AIM_MILLISECONDS = 10.0
START_SECONDS = 60
TOOL, ARGUMENTS = "list_hypotheses", {}  # type: tuple[str, dict[str, Any]]


OURS = ("-m", "diffing_mcp.cli.main", "serve")
BARE = ("-m", "benchmarks.bare_server")


def run(sizes: Sizes) -> list[Measurement]:
    """Median over `sizes.calls` calls after ten that do not count, ours and a bare SDK server's tool in turn; and the
    time to the first answer.
    """
    measurements = []
    for transport in ("HTTP", "stdio"):
        bare, _ = asyncio.run(_times(_connected(transport, ours=False), sizes.calls))
        ours, start = asyncio.run(_times(_connected(transport, ours=True), sizes.calls))
        detail = (
            f"95 % of {len(ours)} calls within {sorted(ours)[int(0.95 * (len(ours) - 1))]:.1f} ms; an SDK server's "
            f"empty tool {statistics.median(bare):.1f} ms; first answer {start:.1f} s after the start"
        )
        name = f"MCP round trip of a light tool, {transport}"
        measurements.append(
            Measurement(name=name, value=statistics.median(ours), unit="ms", aim=AIM_MILLISECONDS, detail=detail)
        )
        measurements.append(
            Measurement(
                name=f"{name} / bare SDK", value=statistics.median(ours) / statistics.median(bare), unit="ratio"
            )
        )
    return measurements


def _connected(transport: str, ours: bool) -> Callable[[], AbstractAsyncContextManager[Any]]:
    return (lambda: _over_http(ours)) if transport == "HTTP" else (lambda: _over_stdio(ours))


async def _times(connected: Callable[[], AbstractAsyncContextManager[Any]], calls: int) -> tuple[list[float], float]:
    started = time.perf_counter()
    async with connected() as client:
        await client.call_tool(TOOL, ARGUMENTS)
        first = time.perf_counter() - started
        for _ in range(10):
            await client.call_tool(TOOL, ARGUMENTS)
        milliseconds = []
        for _ in range(calls):
            before = time.perf_counter()
            answer = await client.call_tool(TOOL, ARGUMENTS)
            milliseconds.append(1000 * (time.perf_counter() - before))
            if answer.is_error:
                raise RuntimeError(f"{TOOL} answered with an error: {answer.content}")
    return milliseconds, first


@asynccontextmanager
async def _over_http(ours: bool) -> AsyncIterator[Any]:
    from mcp import Client

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [*OURS, "--http", "--port", str(port)] if ours else [*BARE, str(port)]
    server = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        await _listening(server, port)
        async with Client(f"http://127.0.0.1:{port}/mcp") as client:
            yield client
    finally:
        server.terminate()
        server.wait(timeout=30)


async def _listening(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError("the server ended before it listened")
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        writer.close()
        return
    raise RuntimeError(f"the server did not listen within {START_SECONDS} s")


@asynccontextmanager
async def _over_stdio(ours: bool) -> AsyncIterator[Any]:
    from mcp import Client, StdioServerParameters

    async with Client(
        StdioServerParameters(command=sys.executable, args=list(OURS if ours else BARE), env=dict(os.environ))
    ) as client:
        yield client
