"""Which server the panel talks to, and that one it started never outlives it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from diffing_mcp.agents.mcp_session import NoServer
from diffing_mcp.agents.server_process import free_port
from diffing_mcp.core.data_folder import folder_identity
from diffing_mcp.core.settings import settings
from diffing_mcp.ui.connection import ServerConnection
from diffing_mcp.ui.jobs import JobBoard, live_ids, method_fields
from diffing_mcp.ui.jobs_view import jobs_html


@pytest.fixture
def answering() -> Iterator[tuple[str, dict[str, Any]]]:
    """An endpoint whose /health says what the dictionary holds under `said`."""
    answer: dict[str, Any] = {"said": {}}

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer["said"]).encode())

        def log_message(self, *_: Any) -> None:
            """Nothing on stderr."""

    server = HTTPServer(("127.0.0.1", 0), Health)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/mcp", answer
    server.shutdown()
    thread.join()
    server.server_close()


def test_only_our_server_of_this_data_folder_is_used(answering: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    url, answer = answering
    connection = ServerConnection(url, tmp_path)
    assert connection.look() == "stranger"
    answer["said"] = ["ok"]
    assert connection.look() == "stranger"
    answer["said"] = {"status": "ok", "server": "diffing", "data": folder_identity(tmp_path / "other")}
    assert connection.look() == "other folder"
    with pytest.raises(NoServer, match="another data folder"):
        connection.start()
    answer["said"]["data"] = folder_identity(tmp_path)
    assert connection.look() == "ours"
    assert connection.answers()
    connection.start()
    assert not connection.started_here


def test_a_given_address_without_server(tmp_path: Path) -> None:
    connection = ServerConnection(f"http://127.0.0.1:{free_port()}/mcp", tmp_path)
    assert not connection.answers()
    with pytest.raises(NoServer, match="the address the panel was given"):
        connection.start()
    assert asyncio.run(connection.jobs()) == []


async def test_a_call_without_server_says_so(tmp_path: Path) -> None:
    connection = ServerConnection(f"http://127.0.0.1:{free_port()}/mcp", tmp_path)
    with pytest.raises(NoServer, match="No server answers"):
        await connection.call("list_pairs", {})
    assert "No server answers" in await JobBoard(connection).start("kl", "cake_bake", {})


def test_a_server_ends_with_whoever_started_it_even_when_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "from diffing_mcp.ui.connection import ServerConnection\n"
        "connection = ServerConnection(None, pathlib.Path(sys.argv[1]))\n"
        "connection.start()\n"
        "print(connection.answers(), flush=True)\n"
        "sys.stdin.read()\n"
    )
    settings = {"DIFFING_DATA_FOLDER": str(tmp_path), "DIFFING_PORT": str(free_port())}
    panel = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **settings},
    )
    assert panel.stdout is not None
    assert panel.stdin is not None
    assert panel.stdout.readline() == "True\n"
    [server] = psutil.Process(panel.pid).children()
    panel.send_signal(signal.SIGKILL)
    panel.wait()
    panel.stdin.close()
    panel.stdout.close()
    server.wait(30)


def test_a_server_that_is_slow_to_answer_is_not_taken_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFING_PORT", str(free_port()))
    settings.cache_clear()
    connection, before = ServerConnection(None, tmp_path), set(psutil.Process().children())
    try:
        connection.start()
        [server] = set(psutil.Process().children()) - before
        server.suspend()
        assert connection.answers()
        connection.start()
        server.resume()
        assert server.is_running()
        assert set(psutil.Process().children()) - before == {server}
        server.kill()
        server.wait(30)
        assert not connection.answers(), "one that is dead is"
    finally:
        connection.close()
        settings.cache_clear()


def test_the_form_has_every_parameter_of_a_method() -> None:
    fields = method_fields("kl")
    assert fields["max_samples"]["type"] == "integer"
    assert "pair" not in fields
    assert list(method_fields("overview")) == ["budget"]
    assert method_fields("no such method") == {}


def test_jobs_say_how_far_they_are_and_what_failed() -> None:
    jobs: list[dict[str, Any]] = [
        {
            "job_id": "kl-1",
            "tool": "kl",
            "pair": "a/b@c",
            "state": "running",
            "progress": 0.25,
            "message": "reading",
            "seconds": 30.0,
            "ends_in": 90,
            "parts": [{"name": "kl", "run_id": "kl-0123ab", "headline": "The <b>models</b> differ."}],
        },
        {"job_id": "pca-2", "tool": "pca", "state": "queued", "queued_before": 1, "seconds": 0.0},
        {"job_id": "x-3", "tool": "x", "state": "failed", "error": "no <b>room</b>", "seconds": 1.0},
    ]
    assert live_ids(jobs) == ["kl-1", "pca-2"]
    shown = jobs_html(jobs)
    assert "25 % reading" in shown
    assert "about 1 min 30 s left" in shown
    assert "run?run=kl-0123ab" in shown
    assert "The &lt;b&gt;models&lt;/b&gt; differ." in shown
    assert "1 before it" in shown
    assert "no &lt;b&gt;room&lt;/b&gt;" in shown
    assert "?pair=a%2Fb%40c" in shown
