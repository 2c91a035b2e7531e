"""`diffing connect`: what it forwards, and what it says while the server it forwards to is away."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from mcp import Client, MCPError, StdioServerParameters
from mcp.types import PromptReference, ToolListChangedNotification

from diffing_mcp.agents.mcp_session import call_as_operator
from diffing_mcp.mcp_server import bridge, investigations
from diffing_mcp.mcp_server.bridge import bridge_server, http_client
from diffing_mcp.mcp_server.instructions import INSTRUCTIONS
from diffing_mcp.mcp_server.serve import running_http
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.model_pairs.residency import ModelPairs
from tests.mcp_server.answers import answered, text_of
from tests.mcp_server.task_clients import HeldWork, Polling, send
from tests.mcp_server.test_consent import User
from tests.mcp_server.test_dictionary_training import stored

MODES = pytest.mark.parametrize("mode", ["auto", "legacy"])
WHAT_TO_START = "diffing serve --http"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@asynccontextmanager
async def serving(pairs: ModelPairs, port: int) -> AsyncIterator[None]:
    context = ServerContext(pairs)
    async with running_http(context, port=port):
        yield
    context.close()


Answerer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(answer: Answerer) -> AsyncIterator[str]:
    """Something on a free port that answers each connection; gives the address of its endpoint."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"


@MODES
async def test_the_bridge_forwards_everything(context: ServerContext, pair_name: str, mode: str) -> None:
    new = investigations.create(pair_name, interactions=5)
    async with (
        running_http(context) as url,
        http_client(url, new.token) as upstream,
        Client(bridge_server(url, new.token), mode=mode) as client,
    ):
        assert client.instructions == upstream.instructions == INSTRUCTIONS
        assert (await client.list_tools()).tools == (await upstream.list_tools()).tools
        described = await answered(client, "describe_pair", {"pair": new.label})
        assert described.structured_content is not None
        assert described.structured_content["result"]["name"] == new.label
        assert (await client.call_tool("describe_pair", {"pair": new.label})).structured_content is None
        wrong = await answered(client, "describe_pair", {"pair": "x"})
        assert wrong.is_error
        assert "There is one pair here" in text_of(wrong)
        assert (await client.list_prompts()).prompts[0].name == "audit_pair"
        await client.get_prompt("audit_pair", {"pair": new.label})
        typed = {"name": "pair", "value": new.label[:3]}
        assert (await client.complete(PromptReference(name="audit_pair"), typed)).completion.values == [new.label]
        with pytest.raises(MCPError) as unknown:
            await client.get_prompt("no_such")
        assert unknown.value.code == -32602


@MODES
async def test_the_bridge_starts_before_its_server_and_outlives_it(
    pairs: ModelPairs, data_folder: object, mode: str
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/mcp"
    async with Client(bridge_server(url), mode=mode) as client:
        for _ in range(2):
            with anyio.fail_after(5):
                with pytest.raises(MCPError, match=WHAT_TO_START):
                    await client.list_tools()
                away = await client.call_tool("list_pairs", {})
            assert away.is_error
            assert WHAT_TO_START in text_of(away)
            with pytest.raises(MCPError, match=WHAT_TO_START):
                await client.list_prompts()
            async with serving(pairs, port):
                assert "list_pairs" in [tool.name for tool in (await client.list_tools()).tools]
                assert not (await client.call_tool("list_pairs", {})).is_error


async def test_a_host_is_told_when_the_server_is_back(
    pairs: ModelPairs, data_folder: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "WATCH_SECONDS", 0.05)
    heard = anyio.Event()

    async def listen(message: object) -> None:
        if isinstance(message, ToolListChangedNotification):
            heard.set()

    port = free_port()
    async with Client(bridge_server(f"http://127.0.0.1:{port}/mcp"), mode="legacy", message_handler=listen) as client:
        with pytest.raises(MCPError):
            await client.list_tools()
        async with serving(pairs, port):
            with anyio.fail_after(10):
                await heard.wait()


async def test_a_server_that_hangs_or_ends_in_the_middle_is_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "CONNECT_SECONDS", 0.3)
    requests = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        requests += 1
        await reader.read(1)
        if requests == 1:  # never answers the first
            await reader.read()
        elif requests == 2:  # says that it is there, and then no more
            writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            await writer.drain()
        writer.close()

    async with listening(answer) as url, Client(bridge_server(url)) as client:
        hanging = await client.call_tool("list_pairs", {})
        assert WHAT_TO_START in text_of(hanging)
        ended = await client.call_tool("list_pairs", {})
        assert ended.is_error
        assert "went away" in text_of(ended)


@pytest.mark.parametrize(("path", "token", "said"), [("/mcp", "wrong", "refuses the token"), ("/x", None, "/mcp")])
async def test_a_wrong_token_or_path_is_named(context: ServerContext, path: str, token: str | None, said: str) -> None:
    async with running_http(context) as url, Client(bridge_server(url.removesuffix("/mcp") + path, token)) as client:
        assert said in text_of(await client.call_tool("list_pairs", {}))


async def test_a_server_of_this_machine_is_not_asked_through_a_proxy(
    context: ServerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    async with running_http(context) as url, Client(bridge_server(url)) as client:
        assert not (await client.call_tool("list_pairs", {})).is_error
    async with running_http(context) as url:
        await call_as_operator(url, "list_pairs", {})


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("429 Too Many Requests\r\nretry-after: 7", "Call again in 7 s"),
        ("413 Content Too Large", "Ask for less"),
        ("421 Misdirected Request", "DIFFING_ALLOWED_HOSTS=127.0.0.1"),
        ("307 Temporary Redirect\r\nlocation: http://127.0.0.1:1/mcp", "to be found at http://127.0.0.1:1/mcp"),
        ("502 Bad Gateway", "HTTP status 502"),
    ],
)
async def test_what_a_server_or_what_stands_before_it_answers_is_explained(answer: str, said: str, first: bool) -> None:
    answers = [answer] if first else ["400 Bad Request", answer]  # the first request only asks who is there

    async def give(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        status = answers.pop(0) if len(answers) > 1 else answers[0]
        writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    async with listening(give) as url, Client(bridge_server(url)) as client:
        refused = await client.call_tool("list_pairs", {})
        assert refused.is_error
        assert said in text_of(refused)


def over_stdio(url: str) -> StdioServerParameters:
    """The bridge as hosts start it: a process."""
    arguments = ["-m", "diffing_mcp.cli.main", "connect", url]
    return StdioServerParameters(command=sys.executable, args=arguments, env=dict(os.environ))


def in_memory(url: str) -> Any:
    return bridge_server(url)


BRIDGES = pytest.mark.parametrize("bridged", [in_memory, over_stdio])


@pytest.mark.parametrize(
    ("mode", "bridged"),
    [
        ("auto", in_memory),
        ("legacy", in_memory),
        *(pytest.param(mode, over_stdio, marks=pytest.mark.long) for mode in ("auto", "legacy")),
    ],
)
async def test_a_question_reaches_the_user_behind_the_bridge(context: ServerContext, bridged: Any, mode: str) -> None:
    folder = stored("sae-aaaaaaaaaaaa")
    async with running_http(context) as url:
        for action in ("decline", "accept"):
            user = User(action)
            async with Client(bridged(url), mode=mode, elicitation_callback=user) as client:
                result = await client.call_tool("delete_dictionary", {"id": folder.name})
            assert len(user.asked) == 1
            assert folder.name in user.asked[0]
            assert bool(result.is_error) is (action == "decline"), text_of(result)
            assert folder.exists() is (action == "decline")
        # A host without a user goes on as before.
        stored(folder.name)
        async with Client(bridged(url), mode=mode) as client:
            assert not (await client.call_tool("delete_dictionary", {"id": folder.name})).is_error


@BRIDGES
async def test_long_work_is_a_task_behind_the_bridge(context: ServerContext, held_work: HeldWork, bridged: Any) -> None:
    async with running_http(context, server=held_work.server(None)) as url:
        polling = Polling()
        async with Client(bridged(url), extensions=[polling]) as client:
            waiting = asyncio.create_task(client.call_tool("held_work", {"wait_seconds": 0}))
            await polling.wait_begun(waiting)
            held_work.released.set()
            assert text_of(await waiting).splitlines()[0] == "All done."
            assert (polling.states[0], polling.states[-1]) == ("working", "completed")
            with pytest.raises(MCPError, match="unknown job"):
                await send(client.session, "get", "kl-00000000")


async def test_a_task_is_cancelled_behind_the_bridge(context: ServerContext, held_work: HeldWork) -> None:
    async with running_http(context, server=held_work.server(None)) as url:
        async with Client(bridge_server(url), extensions=[Polling()]) as client:
            created: Any = await client.session.call_tool("held_work", {"wait_seconds": 0}, allow_claimed=True)
            await send(client.session, "cancel", created.task_id)
            [job] = context.jobs.list(None)
            await context.jobs.wait(job, 20)
            assert (await send(client.session, "get", job.id)).status == "cancelled"
        # A host without the extension gets the text that says to call get_job, and no task.
        async with Client(bridge_server(url)) as client:
            assert "get_job(job_id=" in text_of(await client.call_tool("held_work", {"wait_seconds": 0}))
            with pytest.raises(MCPError) as lacking:
                await send(client.session, "get", job.id)
            assert lacking.value.code == -32021
