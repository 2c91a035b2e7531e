"""Who may in: tokens, loopback, operator token."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.loopback import is_loopback
from diffing_mcp.core.settings import settings
from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.auth import BearerGate, caller_of_token, current_caller, open_access
from diffing_mcp.mcp_server.serve import allowed_names


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("10.0.0.3", False),
        ("lab", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_a_server_on_an_address_of_ipv6_is_called_by_it_in_brackets(data_folder: Path) -> None:
    assert {"[fd00::5]", "[fd00::5]:*"} <= set(allowed_names("fd00::5"))
    assert not any("0.0.0.0" in name for name in allowed_names("0.0.0.0"))


def test_open_access_needs_loopback_and_no_operator_token(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_access("127.0.0.1")
    assert not open_access("0.0.0.0")
    monkeypatch.setenv("DIFFING_OPERATOR_TOKEN", "sesame")
    settings.cache_clear()
    assert not open_access("127.0.0.1")
    operator = caller_of_token("sesame", open_access=False)
    assert operator is not None
    assert operator.operator
    assert caller_of_token("sesam", open_access=False) is None
    assert caller_of_token(None, open_access=False) is None


def test_where_an_issuer_gives_tokens_everybody_shows_one(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFING_OAUTH_ISSUER", "https://lab.example")
    settings.cache_clear()
    assert not open_access("127.0.0.1")


def test_a_wrong_token_is_refused_even_where_none_is_needed(data_folder: Path) -> None:
    assert caller_of_token("wrong", open_access=True) is None
    assert caller_of_token("?", open_access=True) is None


def test_nobody_is_served_without_authentication(data_folder: Path) -> None:
    with pytest.raises(InvalidInput):
        current_caller(None)


async def whoami(request: Request) -> Response:
    return PlainTextResponse(current_caller(None).scope)


async def ask(open_to_all: bool, headers: dict[str, str], path: str = "/mcp") -> httpx2.Response:
    app = BearerGate(
        Starlette(routes=[Route("/mcp", whoami), Route("/health", lambda request: PlainTextResponse("ok"))]),
        open_access=open_to_all,
    )
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://test") as client:
        return await client.get(path, headers=headers)


async def test_the_gate_tells_callers_apart(data_folder: Path, pair_name: str) -> None:
    new = investigations.create(pair_name)
    assert (await ask(True, {})).text == "operator"
    assert (await ask(True, {"Authorization": f"Bearer {new.token}"})).text == new.id
    assert (await ask(False, {"authorization": f"bearer {new.token}"})).text == new.id
    investigations.close(new.id)
    assert (await ask(True, {"Authorization": f"Bearer {new.token}"})).status_code == 401


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", "Bearer x", "Basic abc", "x.y.z", "Bearer \xe9", "Bearer a.b"]
)
async def test_the_gate_refuses_everything_else(data_folder: Path, value: str) -> None:
    answer = await ask(True, {"Authorization": value.encode("latin-1")})  # type: ignore[dict-item]
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert (await ask(False, {})).status_code == 401
    assert (await ask(False, {}, "/health")).text == "ok"
