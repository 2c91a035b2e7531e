"""A Diffing MCP server as a child process for the length of an evaluation: one warm process for all arms, organisms and
repeats.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from diffing_mcp.core.certificates import trusted_certificates
from diffing_mcp.core.errors import DiffingError
from diffing_mcp.core.loopback import through_proxies
from diffing_mcp.core.paths import IMPORT_FOLDER

START_SECONDS = 120
STOP_SECONDS = 20


class ServerDidNotStart(DiffingError):
    """The child process ended, or did not answer in time. The message shows the end of its log."""

    code = "server_did_not_start"


def serve_command(port: int) -> list[str]:
    """The command that serves over HTTP on this machine's loopback address and ends with the process that starts it."""
    command = [sys.executable, "-m", "diffing_mcp.cli.main", "serve", "--http", "--with-parent"]
    return [*command, "--host", "127.0.0.1", "--port", str(port)]


@asynccontextmanager
async def server_process(
    log: Path,
    command: Sequence[str] | None = None,
    port: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[str]:
    """Start a server, wait until /health answers, yield the MCP endpoint, stop it at the end.

    Args:
        log: file that takes the server's stderr and stdout.
        command: what to start instead of `serve_command(port)`.
        port: port it listens on; None takes a free one.
        environment: variables it gets besides those of this process.

    Raises:
        ServerDidNotStart: see there.
    """
    port = port or free_port()
    log.parent.mkdir(parents=True, exist_ok=True)
    # The child finds the same source tree when the project is not installed but run from its folder.
    whole = {
        **os.environ,
        **(environment or {}),
        "PYTHONPATH": os.pathsep.join([str(IMPORT_FOLDER), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }
    with log.open("ab") as output:
        process = subprocess.Popen(
            command or serve_command(port), stdout=output, stderr=output, stdin=subprocess.PIPE, env=whole
        )
    try:
        await _healthy(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(_wait, process)
        except RuntimeError:  # at the end of the interpreter no thread starts any more
            _wait(process)


def free_port() -> int:
    """A port of the loopback address that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    import httpx2

    deadline, heeded = time.monotonic() + START_SECONDS, through_proxies(url)
    async with httpx2.AsyncClient(timeout=2, trust_env=heeded, verify=trusted_certificates(heeded)) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ServerDidNotStart(
                    f"The server ended with code {process.returncode} before it answered. The end of {log}:\n"
                    f"{_tail(log)}"
                )
            try:
                if (await client.get(url)).status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            await asyncio.sleep(0.1)
    raise ServerDidNotStart(f"The server did not answer within {START_SECONDS} s. The end of {log}:\n{_tail(log)}")


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(log: Path, characters: int = 1500) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-characters:]
