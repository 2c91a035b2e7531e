"""Named tokens and tokens of an OAuth issuer over real HTTP: what they open, their limits, and the record of calls."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from mcp import Client, MCPError

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.core.settings import settings
from diffing_mcp.mcp_server import access_tokens, investigations, oauth
from diffing_mcp.mcp_server.access_tokens import Grant, recorded_calls
from diffing_mcp.mcp_server.auth import Caller, caller_of_token, check_exposed
from diffing_mcp.mcp_server.bridge import http_client
from diffing_mcp.mcp_server.database import database_path
from diffing_mcp.mcp_server.limits import Rates
from diffing_mcp.mcp_server.serve import build_server, running_http
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.mcp_server.toolset import DEFAULT_TOOLS, toolset
from diffing_mcp.methods.registry import all_methods
from tests.mcp_server.answers import good, refused, text_of

AUDIENCE = "https://lab.example/mcp"


@pytest.fixture
async def url(context: ServerContext) -> AsyncIterator[str]:
    async with running_http(context) as address:
        yield address


async def posted(url: str, token: str | None, body: bytes = b"{}") -> httpx2.Response:
    headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx2.AsyncClient() as web:
        return await web.post(url, content=body, headers=headers)


async def test_a_token_opens_its_tools_alone(url: str, pair_name: str) -> None:
    token = access_tokens.create(Grant(name="reader", tools=("list_pairs", "list_runs")), ("list_pairs", "list_runs"))
    async with http_client(url, token) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["list_pairs", "get_job"]
        await good(client, "list_runs", {"pair": pair_name})
        assert "there is no tool" in await refused(client, "kl", {"pair": pair_name})
    access_tokens.revoke("reader")
    assert (await posted(url, token)).status_code == 401
    with pytest.raises(UnknownName, match="reader"):
        access_tokens.revoke("nobody")


def named_tools(text: str) -> set[str]:
    """The tools that a text speaks of: words with an underscore, and what is called."""
    words = re.findall(r"(?<![\w/-])([a-z]+(?:_[a-z]+)+|[a-z]+(?=\())(?![\w-])", text)
    return set(words) & toolset().keys()


@pytest.mark.parametrize(
    "tools",
    [
        ("overview", "list_pairs"),
        ("overview", "kl", "activation_difference_lens", "weight_difference", "complete_slots"),
        ("facts", "contrastive_decoding", "ask_models", "compare_text"),
        ("kl", "list_runs", "more_tools"),
    ],
)
async def test_no_answer_names_a_tool_that_a_token_lacks(
    context: ServerContext, pair_name: str, small_params: Callable[[str], dict[str, Any]], tools: tuple[str, ...]
) -> None:
    caller = Caller(grant=Grant(name="some", tools=tools))
    said = []
    async with Client(build_server(context, caller)) as client:
        said += [str(tool.description) for tool in (await client.list_tools()).tools]
        for tool in tools:
            arguments: dict[str, Any] = {"pair": pair_name} if tool not in ("list_pairs", "more_tools") else {}
            if tool == "overview":
                arguments |= {"max_samples": 16, "max_tokens": 8, "budget": 1_000}
            if tool in all_methods():
                arguments |= small_params(tool)
            own: dict[str, dict[str, Any]] = {
                "ask_models": {"prompts": ["What are you?"], "max_new_tokens": 4, "raw_text": True},
                "compare_text": {"text": "some plain words here"},
                "complete_slots": {"beginnings": ["The cake is"]},
            }
            arguments |= own.get(tool, {})
            if tool == "overview":  # as long as it runs
                said.append(text_of(await client.call_tool(tool, {**arguments, "wait_seconds": 0})))
            said.append(text_of(await client.call_tool(tool, arguments)))
            said.append(text_of(await client.call_tool(tool, {**arguments, "pair": "nobody"})))
            said.append(text_of(await client.call_tool(tool, {**arguments, "nonsense": 1})))
        said.append(text_of(await client.call_tool("get_job", {"job_id": "nobody"})))
    run_by_it = [name for name, method in all_methods().items() if method.in_overview and "overview" in tools]
    for text in said:
        assert named_tools(text) <= {*tools, "get_job", *run_by_it}, text


async def test_a_token_of_the_default_tools_has_an_overview(context: ServerContext, pair_name: str) -> None:
    async with Client(build_server(context, Caller(grant=Grant(name="ci", tools=DEFAULT_TOOLS)))) as client:
        asked = {"pair": pair_name, "max_samples": 16, "max_tokens": 8, "budget": 1_000}
        assert (await good(client, "overview", asked))["result"]["runs"]


async def test_a_token_of_some_tools_sees_no_other_s_work_and_gets_its_own(
    url: str, pair_name: str, context: ServerContext
) -> None:
    new = investigations.create(pair_name, note="what it is about")
    token = access_tokens.create(Grant(name="loader", tools=("load_pair",)), ("load_pair",))
    others = context.jobs.submit("kl", "operator", "a secret", lambda job: "found")
    assert others.finished.wait(10)
    async with http_client(url, token) as client:
        await good(client, "load_pair", {"pair": pair_name, "wait_seconds": 0})
        assert [job["tool"] for job in (await good(client, "get_job", {}))["result"]["jobs"]] == ["load_pair"]
        for arguments in ({"job_id": others.id}, {"job_id": others.id, "cancel": True}):
            assert "unknown job" in await refused(client, "get_job", arguments)
        for place in ("runs", f"investigations/{new.id}"):
            with pytest.raises(MCPError, match="may not"):
                await client.read_resource(f"diffing://{place}")


async def test_a_read_only_token_changes_nothing(url: str) -> None:
    token = access_tokens.create(Grant(name="looker", read_only=True))
    async with http_client(url, token) as client:
        assert "there is no tool" in await refused(client, "delete_dictionary", {"id": "sae-aaaaaaaaaaaa"})
        assert "there is no tool" in await refused(client, "open_investigation", {"pair": "cake_bake"})
        assert not (await client.call_tool("list_pairs", {"limit": 1})).is_error


async def test_rates_and_sizes_are_each_token_s_own(url: str) -> None:
    slow = access_tokens.create(Grant(name="slow", requests_per_minute=2))
    small = access_tokens.create(Grant(name="small", request_bytes=100))
    answers = [await posted(url, slow) for _ in range(3)]
    assert [answer.status_code == 429 for answer in answers] == [False, False, True]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 30
    assert (await posted(url, small, b"x" * 101)).status_code == 413
    assert (await posted(url, small)).status_code not in (401, 413, 429)

    async def unmeasured() -> AsyncIterator[bytes]:
        yield b"x" * 10_000

    async with httpx2.AsyncClient() as web:
        sent = await web.post(url, content=unmeasured(), headers={"Authorization": f"Bearer {small}"})
    assert sent.status_code == 413


@pytest.mark.parametrize("name", ["", "  ", "two\nlines", "x" * 101, "operator", "oauth:ana"])
def test_a_token_has_a_name_of_its_own(data_folder: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="name"):
        access_tokens.create(Grant(name=name))


def test_tokens_are_not_kept_and_names_not_reused(data_folder: Path) -> None:
    token = access_tokens.create(Grant(name="one"))
    for file in database_path().parent.glob("investigations.sqlite*"):
        assert token.encode() not in file.read_bytes()
    assert access_tokens.authenticate(token) == Grant(name="one")
    assert access_tokens.authenticate(token[:-1]) is None
    access_tokens.revoke("one")
    assert access_tokens.authenticate(token) is None
    with pytest.raises(InvalidInput, match="another name"):
        access_tokens.create(Grant(name="one"))
    with pytest.raises(InvalidInput, match="from 1 up"):
        access_tokens.create(Grant(name="two", requests_per_minute=0))
    with pytest.raises(UnknownName, match="unknown tools: no_such"):
        access_tokens.create(Grant(name="two", tools=("no_such",)), ("kl",))


async def test_calls_are_recorded_without_what_was_said(url: str, pair_name: str) -> None:
    token = access_tokens.create(Grant(name="ana"))
    new = investigations.create(pair_name, interactions=3)
    async with http_client(url, token) as client:
        await good(client, "compare_text", {"pair": pair_name, "text": "a secret sentence"})
        await refused(client, "no such tool, a secret sentence", {})
    async with http_client(url, new.token) as client:
        await client.call_tool("list_pairs", {})
    calls = recorded_calls()
    assert [(call.caller, call.tool, call.outcome) for call in calls] == [
        (new.id, "list_pairs", "completed"),
        ("ana", "unknown", "error"),
        ("ana", "compare_text", "completed"),
    ]
    said = json.dumps([call.model_dump() for call in calls])
    assert "secret" not in said
    assert token not in said
    assert pair_name not in said


def test_the_record_keeps_the_newest(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_tokens, "KEPT_CALLS", 3)
    for number in range(5):
        access_tokens.record_call("ana", f"tool{number}", "completed", 0.1)
    assert [call.tool for call in recorded_calls()] == ["tool4", "tool3", "tool2"]


@given(st.integers(1, 600), st.lists(st.floats(0, 30), min_size=1, max_size=60))
def test_no_minute_has_more_than_twice_its_share(per_minute: int, pauses: list[float]) -> None:
    now = 0.0
    rates = Rates(lambda: now)
    taken: list[float] = []
    for pause in pauses:
        now += pause
        if (wait := rates.wait("a", per_minute)) == 0:
            taken.append(now)
        else:
            assert 0 < wait <= 60 / per_minute
    for start in taken:
        assert sum(start <= when < start + 60 for when in taken) <= 2 * per_minute


@pytest.fixture
def issuer(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An issuer on this machine, and what makes its tokens."""
    key, stranger = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    public = {**json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key())), "kid": "one", "use": "sig"}
    fetched: list[str] = []

    class Keys(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fetched.append(self.path)
            body = Made.answer
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    served = HTTPServer(("127.0.0.1", 0), Keys)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{served.server_port}"
    monkeypatch.setenv("DIFFING_OAUTH_ISSUER", address)
    monkeypatch.setenv("DIFFING_PUBLIC_URL", AUDIENCE)
    settings.cache_clear()

    class Made:
        requests = fetched
        answer = json.dumps({"keys": [public]}).encode()

        @staticmethod
        def token(kid: str = "one", by: Any = key, algorithm: str = "ES256", **changed: Any) -> str:
            claims = {"iss": address, "aud": AUDIENCE, "sub": "ana", "scope": "diffing", "exp": time.time() + 600}
            claims = {name: value for name, value in {**claims, **changed}.items() if value is not None}
            return jwt.encode(claims, stranger if by is None else by, algorithm=algorithm, headers={"kid": kid})

    yield Made
    served.shutdown()
    served.server_close()
    settings.cache_clear()


def test_tokens_of_the_issuer_open_what_their_scope_says(issuer: Any) -> None:
    operator = caller_of_token(issuer.token(), open_access=False)
    assert operator is not None
    assert (operator.operator, operator.name, operator.read_only) == (True, "oauth:ana", False)
    reader = caller_of_token(issuer.token(scope="openid diffing:read"), open_access=False)
    assert reader is not None
    assert reader.read_only
    assert len(issuer.requests) == 1


WRONG: dict[str, dict[str, Any]] = {
    "expired": {"exp": 1},
    "never expires": {"exp": None},
    "of another issuer": {"iss": "https://evil.example"},
    "for somebody else": {"aud": "https://other.example/mcp"},
    "for nobody": {"aud": None},
    "of nobody": {"sub": None},
    "without the scope": {"scope": "openid"},
    "without a scope": {"scope": None},
    "not yet valid": {"nbf": 2**33},
    "signed by a stranger": {"by": None},
    "of an unknown key": {"kid": "two"},
    "signed with a shared secret": {"by": "x" * 64, "algorithm": "HS256"},
    "not signed": {"by": "", "algorithm": "none"},
}


@pytest.mark.parametrize("kind", WRONG)
def test_other_tokens_open_nothing(issuer: Any, kind: str) -> None:
    assert caller_of_token(issuer.token(**WRONG[kind]), open_access=True) is None
    assert caller_of_token(issuer.token()[:-4] + "AAAA", open_access=True) is None


def test_an_issuer_that_answers_with_a_page_opens_nothing(issuer: Any, caplog: pytest.LogCaptureFixture) -> None:
    issuer.answer = b"<html>signed out</html>"
    assert caller_of_token(issuer.token(), open_access=True) is None
    assert "keys of the OAuth issuer" in caplog.text


def test_an_issuer_that_is_broken_is_not_asked_for_every_request(issuer: Any) -> None:
    issuer.answer = b"<html>signed out</html>"
    for _ in range(20):
        assert caller_of_token(issuer.token(), open_access=True) is None
    assert len(issuer.requests) <= 2


def test_unknown_keys_do_not_have_the_issuer_asked_again_and_again(issuer: Any) -> None:
    for number in range(20):
        assert caller_of_token(issuer.token(kid=f"made up {number}"), open_access=False) is None
    assert len(issuer.requests) <= 2


async def test_a_client_learns_of_the_issuer_and_is_served(issuer: Any, context: ServerContext) -> None:
    async with running_http(context) as url:
        refusal = await posted(url, "a.b.c")
        assert refusal.status_code == 401
        place = "/.well-known/oauth-protected-resource/mcp"
        assert f"https://lab.example{place}" in refusal.headers["www-authenticate"]
        async with httpx2.AsyncClient() as web:
            told = (await web.get(url.removesuffix("/mcp") + place)).json()
        assert told["resource"] == AUDIENCE
        assert told["scopes_supported"] == ["diffing", "diffing:read"]
        async with http_client(url, issuer.token()) as client:
            assert not (await client.call_tool("list_pairs", {"limit": 1})).is_error
    assert recorded_calls(1)[0].caller == "oauth:ana"


@pytest.mark.parametrize("issuer_url", ["http://lab.example", "file:///etc/passwd", "lab.example"])
def test_keys_come_over_https_only(issuer_url: str) -> None:
    with pytest.raises(InvalidInput, match="https"):
        oauth.Issuer(issuer_url, AUDIENCE, f"{issuer_url}/keys")


def test_an_issuer_needs_an_audience(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFING_OAUTH_ISSUER", "https://lab.example")
    settings.cache_clear()
    with pytest.raises(InvalidInput, match="AUDIENCE"):
        oauth.configured_issuer()
    settings.cache_clear()


def test_nothing_listens_for_others_without_a_token(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_exposed("127.0.0.1")
    for host in ("0.0.0.0", "::", "lab.example"):
        with pytest.raises(InvalidInput, match="diffing tokens new"):
            check_exposed(host)
    access_tokens.create(Grant(name="one"))
    check_exposed("0.0.0.0")
    access_tokens.revoke("one")
    with pytest.raises(InvalidInput):
        check_exposed("0.0.0.0")
    monkeypatch.setenv("DIFFING_OPERATOR_TOKEN", "sesame")
    settings.cache_clear()
    check_exposed("0.0.0.0")
    settings.cache_clear()


async def test_a_session_is_of_the_token_that_opened_it(url: str) -> None:
    """A session of 2025 whose id another token learns is not served to it."""
    one, two = (access_tokens.create(Grant(name=name)) for name in ("one", "two"))
    hello = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}},
    }
    opened = await posted(url, one, json.dumps(hello).encode())
    session = opened.headers["mcp-session-id"]
    ping = json.dumps({"jsonrpc": "2.0", "id": 2, "method": "ping"}).encode()
    statuses = []
    for token in (one, two):
        headers = {"Authorization": f"Bearer {token}", "Mcp-Session-Id": session, "Content-Type": "application/json"}
        headers["Accept"] = "application/json, text/event-stream"
        async with httpx2.AsyncClient() as web:
            statuses.append((await web.post(url, content=ping, headers=headers)).status_code)
    assert statuses == [200, 404]
