"""The server as a process or over HTTP: hang-ups, shared jobs, tokens, SIGTERM, a killed server."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.bridge import http_client
from diffing_mcp.mcp_server.database import connect
from diffing_mcp.mcp_server.serve import running_http
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.methods.runs.store import default_store
from tests.mcp_server.answers import answered, good, refused

SERVE = (
    "import sys; from diffing_mcp.mcp_server.serve import serve_http, serve_stdio; serve_http('127.0.0.1', 0) if "
    "sys.argv[1] == 'http' else serve_stdio()"
)
# Long enough that a test cannot miss it, in many small batches.
LONG = {"max_samples": 2000, "max_tokens": 30}


@pytest.fixture
async def url(context: ServerContext) -> AsyncIterator[str]:
    async with running_http(context) as address:
        yield address


async def until(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_client_that_hangs_up_stops_its_job_unless_it_knows_it(
    url: str, context: ServerContext, pair_name: str, mode: str, known: bool, slow_batches: None
) -> None:
    new = investigations.create(pair_name, interactions=5, tool_calls=5)
    async with http_client(url, new.token) as client:
        if known:
            first = await answered(client, "kl", {"pair": new.label, **LONG, "wait_seconds": 0})
            assert (first.structured_content or {})["status"] == "running"
    headers = {"Authorization": f"Bearer {new.token}"}
    from mcp.client.streamable_http import streamable_http_client

    async def hang_up() -> None:
        async with (
            httpx2.AsyncClient(headers=headers, timeout=60) as web,
            Client(streamable_http_client(url, http_client=web), mode=mode) as client,
        ):
            with_timeout = asyncio.create_task(answered(client, "kl", {"pair": new.label, **LONG}))
            await until(lambda: any(job.waiters and job.state == "running" for job in context.jobs.list(None)))
            with_timeout.cancel()
            with pytest.raises(asyncio.CancelledError):
                await with_timeout

    await hang_up()
    job = context.jobs.list(None)[0]
    async with http_client(url, new.token) as client:
        if known:
            # Other tools are answered while the job runs, and an equal call finds the same job.
            await answered(client, "list_hypotheses", {})
            assert job.state == "running"
            again = await answered(client, "kl", {"pair": new.label, **LONG, "wait_seconds": 0})
            assert again.structured_content is not None
            assert again.structured_content["job"]["job_id"] == job.id
            await answered(client, "cancel_job", {"job_id": job.id})
        assert await asyncio.to_thread(job.finished.wait, 20)
        assert job.state == "cancelled"
        assert (await good(client, "compare_text", {"pair": new.label, "text": "the slot is free again"}))[
            "status"
        ] == "completed"
    record = investigations.show(new.id)
    assert record.calls[0].outcome in (("running",) if known else ("abandoned", "completed"))
    assert record.budget.interactions_left == 4


async def test_the_agent_of_the_documents_asks_both_models(
    url: str, pair_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "hosts.md").read_text(encoding="utf-8")
    [code] = re.findall(r"^```python\n(.*?)^print", page, flags=re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(code, names)
    assert "finetuned" in await names["ask"](url, pair_name)
    assert "test_hypothesis" in capsys.readouterr().out


@pytest.mark.parametrize("protocol", ["2025-06-18", "2026-07-28"])
async def test_who_hangs_up_while_sending_is_one_line_of_the_log(
    url: str, protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The server took it for an error of its own, with a traceback of the whole stack."""
    caplog.set_level(logging.INFO)
    logging.getLogger("uvicorn.error").addHandler(caplog.handler)
    address = urlsplit(url)
    lines = [f"POST {address.path} HTTP/1.1", f"Host: {address.netloc}", "Content-Length: 1000"]
    lines += ["Content-Type: application/json", "Accept: application/json, text/event-stream"]
    lines += [f"MCP-Protocol-Version: {protocol}", "", '{"jsonrpc": "2.0",']
    try:
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write("\r\n".join(lines).encode())
        await writer.drain()
        writer.close()
        await until(lambda: any(each.exc_info or "hung up" in each.message for each in caplog.records))
    finally:
        logging.getLogger("uvicorn.error").removeHandler(caplog.handler)
    [line] = [each for each in caplog.records if each.exc_info or "hung up" in each.message]
    assert (line.levelname, line.exc_info) == ("INFO", None)
    async with http_client(url, None) as client:
        await good(client, "list_pairs", {})


async def test_a_question_is_answered_while_others_train(
    url: str, context: ServerContext, pair_name: str, slow_batches: None
) -> None:
    one, two = (investigations.create(pair_name, interactions=5, tool_calls=5) for _ in range(2))
    async with http_client(url, one.token) as client:
        long = await answered(client, "kl", {"pair": one.label, **LONG, "wait_seconds": 0})
    async with http_client(url, two.token) as client:
        answer = await good(client, "compare_text", {"pair": two.label, "text": "a question"})
        assert answer["status"] == "completed"
    job = context.jobs.get((long.structured_content or {})["job"]["job_id"], None)
    assert job.state == "running"
    context.jobs.cancel(job)


async def test_two_equal_calls_share_one_job_and_one_price(url: str, context: ServerContext, pair_name: str) -> None:
    new = investigations.create(pair_name, interactions=5, tool_calls=5)
    arguments = {"pair": new.label, "prompts": ["a", "b"], "max_new_tokens": 20, "raw_text": True}
    async with http_client(url, new.token) as one, http_client(url, new.token) as two:
        answers = await asyncio.gather(
            answered(one, "ask_models", arguments), answered(two, "ask_models", {**arguments, "wait_seconds": 30})
        )
    results = [(answer.structured_content or {})["result"] for answer in answers]
    assert results[0] == results[1]
    assert len(context.jobs.list(None)) == 1
    assert investigations.show(new.id).budget.interactions_left == 3


async def test_a_long_call_returns_a_handle_and_get_job_ends_it(url: str, pair_name: str, slow_batches: None) -> None:
    new = investigations.create(pair_name)
    arguments = {"pair": new.label, "max_samples": 60, "max_tokens": 12}
    async with http_client(url, new.token) as client:
        first = await answered(client, "kl", {**arguments, "wait_seconds": 0})
        answer = first.structured_content or {}
        assert answer["status"] == "running"
        assert "get_job" in answer["next_step"]
        reports: list[float] = []

        async def watch(progress: float, total: float | None, message: str | None) -> None:
            reports.append(progress)

        while answer["status"] == "running":
            answer = (
                await answered(client, "get_job", {"job_id": answer["job"]["job_id"]}, progress_callback=watch)
            ).structured_content or {}
        assert answer["run_id"].startswith("kl-")
        assert reports == sorted(reports)
        # Only who waited for the job may have seen its end; the run is theirs either way.
        assert not (await answered(client, "view_run", {"run": answer["run_id"]})).is_error


async def test_tokens_over_http(url: str, pair_name: str) -> None:
    new = investigations.create(pair_name, "blackbox")
    async with http_client(url, new.token) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
        assert "ask_models" in names
        assert "kl" not in names
    async with http_client(url, None) as client:
        listed = await good(client, "more_tools", {})
        assert "unload_pair" in [row["name"] for row in listed["result"]["tools"]]
    investigations.close(new.id)
    for token in (new.token, "wrong", new.token + "x"):
        answer = await _post(url, token)
        assert answer.status_code == 401
    assert (await _post(url, None, host="evil.example")).status_code == 421
    assert (await _post(url, None, origin="http://evil.example")).status_code == 403


async def test_operators_open_and_close_investigations_over_http(url: str, pair_name: str) -> None:
    wanted = {"pair": pair_name, "tools": "blackbox", "interactions": 3, "tool_calls": 9, "note": "arm a"}
    async with http_client(url, None) as operator:
        opened = (await good(operator, "open_investigation", wanted))["result"]
        kept = investigations.get(opened["id"])
        assert (kept.label, kept.pair, kept.tools, kept.interactions, kept.tool_calls, kept.note) == (
            opened["label"],
            pair_name,
            ["blackbox"],
            3,
            9,
            "arm a",
        )
        async with http_client(url, opened["token"]) as holder:
            await good(holder, "ask_models", {"pair": opened["label"], "prompts": ["a"], "max_new_tokens": 4})
            await good(holder, "submit_finding", {"verdict": "difference", "statement": "kettles"})
        closed = (await good(operator, "close_investigation", {"investigation": opened["label"]}))["result"]
        assert closed["finding"]["statement"] == "kettles"
        assert closed["budget"]["interactions_left"] == 2
        assert closed["run_ids"] == []
        assert (await good(operator, "close_investigation", {"investigation": opened["id"]}))["result"] == closed
        assert (await _post(url, opened["token"])).status_code == 401
        assert "no investigation" in await refused(operator, "close_investigation", {"investigation": "nobody"})
        assert "unknown tools: open_investigation" in await refused(
            operator, "open_investigation", {**wanted, "tools": "kl,open_investigation"}
        )
        assert "interactions" in await refused(operator, "open_investigation", {**wanted, "interactions": -1})


@pytest.mark.parametrize("tools", ["blackbox", "method", "kl"])
async def test_investigations_open_and_close_none(url: str, pair_name: str, tools: str) -> None:
    new = investigations.create(pair_name, tools, known_tools=["kl"])
    other = investigations.create(pair_name)
    async with http_client(url, new.token) as holder:
        offered = {row["name"] for row in (await good(holder, "more_tools", {}))["result"]["tools"]}
        assert not {"open_investigation", "close_investigation"} & offered
        for tool, arguments in (
            ("open_investigation", {"pair": new.label}),
            ("open_investigation", {"pair": pair_name}),
            ("close_investigation", {"investigation": other.id}),
            ("close_investigation", {"investigation": new.id}),
        ):
            assert "there is no tool" in await refused(holder, tool, arguments)
    assert len(investigations.list_investigations()) == 2
    assert all(kept.closed is None for kept in investigations.list_investigations())


async def _post(url: str, token: str | None, host: str | None = None, origin: str | None = None) -> httpx2.Response:
    headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    headers |= {"Host": host} if host else {}
    headers |= {"Origin": origin} if origin else {}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    async with httpx2.AsyncClient() as web:
        return await web.post(url, headers=headers, content=json.dumps(body))


async def test_one_session_cannot_be_taken_over_with_another_token(url: str, pair_name: str) -> None:
    first, second = investigations.create(pair_name), investigations.create(pair_name)
    headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
    hello = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
    }
    async with httpx2.AsyncClient(headers=headers) as web:
        opened = await web.post(url, content=json.dumps(hello), headers={"Authorization": f"Bearer {first.token}"})
        session = opened.headers["mcp-session-id"]
        body = json.dumps(
            {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "list_pairs", "arguments": {}}}
        )
        taken = await web.post(
            url, content=body, headers={"Authorization": f"Bearer {second.token}", "Mcp-Session-Id": session}
        )
        assert taken.status_code in (401, 403, 404)
        assert first.label not in taken.text


Serving = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def serving_process(data_folder: Path) -> Iterator[Serving]:
    """Starts servers (`http` or `stdio`, and what to run first) that do not outlive the test."""
    started: list[subprocess.Popen[str]] = []

    def start(kind: str, before: str = "") -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        script = [sys.executable, "-c", before + SERVE, kind]
        started.append(subprocess.Popen(script, text=True, env=dict(os.environ), **pipes))  # type: ignore[call-overload]
        return started[-1]

    yield start
    for process in started:
        with process:  # ends when its pipes are closed and it is gone; a test may have closed one of them
            process.kill()


def address_of(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if "serving MCP on " in line:
            return line.split("serving MCP on ")[1].strip()
    raise AssertionError("the server did not start")


async def _start_long_job(url: str, token: str, label: str) -> dict[str, Any]:
    async with http_client(url, token) as client:
        await good(client, "compare_text", {"pair": label, "text": "some plain words here"})
        finished = await good(client, "kl", {"pair": label, "max_samples": 20, "max_tokens": 8})
        endless = {"prompts": ["x"] * 60, "samples": 32, "max_new_tokens": 200, "temperature": 1.5, "raw_text": True}
        running = await answered(client, "ask_models", {"pair": label, **endless, "wait_seconds": 2})
        assert (running.structured_content or {})["status"] == "running", running
        return finished


@pytest.mark.parametrize("mode", ["auto", pytest.param("legacy", marks=pytest.mark.long)])
@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
async def test_the_http_server_answers_and_ends_cleanly_with_a_running_job(
    data_folder: Path, pair_name: str, how: signal.Signals, mode: str, serving_process: Serving
) -> None:
    from mcp.client.streamable_http import streamable_http_client

    new = investigations.create(pair_name, interactions=5000)
    process = serving_process("http")
    url = address_of(process)
    await _start_long_job(url, new.token, new.label)
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {new.token}"}, timeout=60) as web,
        Client(streamable_http_client(url, http_client=web), mode=mode) as client,
    ):
        reported = asyncio.Event()

        async def watch(progress: float, total: float | None, message: str | None) -> None:
            reported.set()

        jobs = (await answered(client, "get_job", {})).structured_content or {}
        job = next(job["job_id"] for job in jobs["result"]["jobs"] if job["state"] == "running")
        waiting = asyncio.create_task(answered(client, "get_job", {"job_id": job}, progress_callback=watch))
        await asyncio.wait_for(reported.wait(), 30)
        process.send_signal(how)
        assert "the server is shutting down" in str((await asyncio.wait_for(waiting, 30)).content)
    assert await asyncio.to_thread(process.wait, 30) == 0
    # What the running job had reserved was given back, what was finished stays spent.
    assert investigations.show(new.id).budget.interactions_left == 4999
    with connect() as connection:
        assert connection.execute("SELECT count(*) FROM reservations WHERE state = 'reserved'").fetchone()[0] == 0


async def test_a_killed_server_loses_nothing_finished(
    data_folder: Path, pair_name: str, serving_process: Serving
) -> None:
    new = investigations.create(pair_name, interactions=5000)
    process = serving_process("http")
    finished = await _start_long_job(address_of(process), new.token, new.label)
    process.kill()
    await asyncio.to_thread(process.wait, 30)
    assert investigations.show(new.id).budget.interactions_left < 4999
    context = ServerContext()
    assert investigations.show(new.id).budget.interactions_left == 4999
    assert default_store().get(finished["run_id"]).result_json()["headline"] == finished["result"]["headline"]
    async with running_http(context) as url, http_client(url, new.token) as client:
        arguments = {"pair": new.label, "max_samples": 20, "max_tokens": 8}
        again = await answered(client, "kl", arguments)
        answer = again.structured_content or {}
        assert answer["run_id"] == finished["run_id"]
        assert "job" not in answer
        said = "The server was restarted while work of yours was under way (ask_models). 1920 model interactions"
        assert said in str(again.content)
        assert said not in str((await answered(client, "kl", arguments)).content)  # once
    context.close()


@pytest.mark.parametrize(
    "mode", ["auto", pytest.param("legacy", marks=pytest.mark.long)]
)  # over HTTP both are always tested
async def test_stdio_in_both_eras(data_folder: Path, pair_name: str, mode: str) -> None:
    parameters = StdioServerParameters(command=sys.executable, args=["-c", SERVE, "stdio"], env=dict(os.environ))
    async with Client(stdio_client(parameters), mode=mode) as client:
        assert "list_pairs" in [tool.name for tool in (await client.list_tools()).tools]
        await good(client, "compare_text", {"pair": pair_name, "text": "some plain words here"})


@pytest.mark.parametrize("how", ["SIGTERM", pytest.param("EOF", marks=pytest.mark.long)])
async def test_stdio_answers_and_ends_in_the_middle_of_a_batch(
    data_folder: Path, pair_name: str, how: str, serving_process: Serving
) -> None:
    process = serving_process(
        "stdio",
        "import diffing_mcp.queries.comparing as c, threading; "
        "c.compare = lambda pair, query, job: threading.Event().wait(); ",
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def send(**message: Any) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        process.stdin.flush()

    async def read() -> dict[str, Any]:
        assert process.stdout is not None
        message: dict[str, Any] = json.loads(await asyncio.to_thread(process.stdout.readline))
        return message

    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    send(id=1, method="initialize", params=hello)
    assert (await read())["result"]["serverInfo"]["name"] == "diffing"
    send(method="notifications/initialized")
    arguments = {"pair": pair_name, "text": "some plain words"}
    meta = {"progressToken": 7}
    send(id=2, method="tools/call", params={"name": "compare_text", "arguments": arguments, "_meta": meta})
    assert (await read())["method"] == "notifications/progress"
    if how == "EOF":
        process.stdin.close()
    else:
        process.terminate()
        answer = await read()
        while answer.get("id") != 2:
            answer = await read()
        assert "the server is shutting down" in str(answer["result"]["content"])
    assert await asyncio.to_thread(process.wait, 20) == 0
