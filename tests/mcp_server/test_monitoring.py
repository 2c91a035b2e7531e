"""What a monitor reads: /health for everybody, /metrics for operators, logs without secrets, traces where wanted."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from mcp import Client

from diffing_mcp.core.settings import settings
from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.monitoring import LogFormatter, send_traces, without_secrets
from diffing_mcp.mcp_server.serve import running_http
from diffing_mcp.mcp_server.server_context import ServerContext


@pytest.fixture
async def url(context: ServerContext) -> AsyncIterator[str]:
    async with running_http(context) as address:
        yield address


async def got(url: str, path: str, token: str | None = None) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx2.AsyncClient() as web:
        return await web.get(url.removesuffix("/mcp") + path, headers=headers)


async def test_health_is_for_everybody_and_metrics_for_operators(url: str, context: ServerContext) -> None:
    async with Client(url) as client:
        await client.call_tool("list_pairs", {"limit": 1})
        await client.call_tool("made up {x} tool", {})
    assert (await got(url, "/health")).json()["status"] == "ok"
    lines = (await got(url, "/metrics")).text.splitlines()
    assert 'diffing_calls_total{outcome="completed",tool="list_pairs"} 1.0' in lines
    # Names that are no tools would make a number of their own each.
    assert 'diffing_calls_total{outcome="error",tool="unknown"} 1.0' in lines
    assert "diffing_call_seconds_count 2.0" in lines
    assert 'diffing_jobs{state="running"} 0.0' in lines
    new = investigations.create("cake_bake")
    assert (await got(url, "/metrics", new.token)).status_code == 403
    assert (await got(url, "/metrics", "wrong")).status_code == 401


TOKEN = "diffing_abcdefghijklmnopqrstuvwxyz0123456789"


@pytest.mark.parametrize(
    "secret",
    [
        f"Bearer {TOKEN}",
        TOKEN,
        "0123456789ab.abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUV",
        "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
        "hf_abcdefghijklmnopqrstuvwxyz",
        "sk-abcdefghijklmnopqrstuvwxyz",
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_logs_hold_no_secrets(secret: str, as_json: bool, data_folder: Path) -> None:
    try:
        raise ValueError(f"in the cause {secret}")
    except ValueError as error:
        record = logging.LogRecord("x", 30, "f", 1, "refused %s now", (secret,), (type(error), error, None))
    line = LogFormatter(as_json).format(record)
    assert secret.removeprefix("Bearer ") not in line
    assert "***" in line
    if as_json:
        entry = json.loads(line)
        assert entry["level"] == "WARNING"
        assert entry["message"].startswith("refused ")
        assert "in the cause" in entry["exception"]


def test_the_operator_s_token_is_no_text_for_a_log(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFING_OPERATOR_TOKEN", "open sesame")
    settings.cache_clear()
    assert without_secrets("got open sesame from a client") == "got *** from a client"
    assert without_secrets("kl-1a2b3c4d of cake_bake/default@smollm2-135m") == (
        "kl-1a2b3c4d of cake_bake/default@smollm2-135m"
    )
    settings.cache_clear()


def test_no_trace_is_sent_unless_a_collector_is_named(data_folder: Path) -> None:
    from opentelemetry import trace

    before = trace.get_tracer_provider()
    send_traces()
    assert trace.get_tracer_provider() is before
