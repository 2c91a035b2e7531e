"""Who is calling: an operator, or the holder of an investigation's token.

Over HTTP every request passes `BearerGate`. Without a token a caller is an operator only when the server listens on
loopback and no operator token is configured. In memory and over stdio there are no requests to authenticate; the
process that starts the server says who its one client is.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from mcp.server.auth.middleware.auth_context import AuthContextMiddleware, get_access_token
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from starlette.authentication import AuthCredentials

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.settings import settings
from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.findings import OPERATOR_SCOPE
from diffing_mcp.mcp_server.investigations import Investigation

Scope = MutableMapping[str, Any]
Asgi = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


@dataclass(frozen=True)
class Caller:
    """An operator (`investigation` is None: real names, no budgets) or the holder of an investigation's token."""

    investigation: Investigation | None = None

    @property
    def scope(self) -> str:
        """What separates the jobs, hypotheses and findings of callers from each other."""
        return self.investigation.id if self.investigation else OPERATOR_SCOPE

    @property
    def operator(self) -> bool:
        return self.investigation is None

    def may_use(self, tool: str, operator_only: bool = False) -> bool:
        """Whether the caller sees the tool at all."""
        return self.investigation is None or (not operator_only and self.investigation.allows(tool))


OPERATOR = Caller()


def caller_of_token(token: str | None, *, open_access: bool) -> Caller | None:
    """The caller a bearer token stands for; None when access is refused. `open_access` lets callers without a token be
    operators.
    """
    if not token:
        return OPERATOR if open_access else None
    operator_token = settings().operator_token
    if operator_token is not None and hmac.compare_digest(operator_token.get_secret_value().encode(), token.encode()):
        return OPERATOR
    investigation = investigations.authenticate(token)
    return Caller(investigation) if investigation else None


def open_access(host: str) -> bool:
    """Whether clients without a token are operators: loopback only, and only while no operator token is configured."""
    return settings().operator_token is None and is_loopback(host)


def is_loopback(host: str) -> bool:
    """Whether a host name or address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def current_caller(default: Caller | None) -> Caller:
    """The caller of the request being served; `default` outside of HTTP.

    Raises:
        InvalidInput: nobody authenticated this request.
    """
    access = get_access_token()
    if access is None:
        if default is None:
            raise InvalidInput("this request carries no valid token")
        return default if default.investigation is None else Caller(investigations.get(default.investigation.id))
    return OPERATOR if access.client_id == OPERATOR_SCOPE else Caller(investigations.get(access.client_id))


class BearerGate:
    """ASGI wrapper: answers 401 unless the request's bearer token (or its absence, with `open_access`) stands for a
    caller.
    """

    def __init__(self, app: Asgi, *, open_access: bool, public_paths: frozenset[str] = frozenset({"/health"})) -> None:
        self.app = AuthContextMiddleware(app)
        self.open_access = open_access
        self.public_paths = public_paths

    async def __call__(
        self, scope: Scope, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        if scope["type"] == "http" and scope["path"] not in self.public_paths:
            caller = caller_of_token(_bearer(scope), open_access=self.open_access)
            if caller is None:
                await _refuse(send)
                return
            scope["user"] = AuthenticatedUser(
                AccessToken(token="", client_id=caller.scope, scopes=[], subject=caller.scope)
            )
            scope["auth"] = AuthCredentials([])
        await self.app(scope, receive, send)


def _bearer(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name.lower() == b"authorization":
            kind, _, token = value.decode("latin-1").partition(" ")
            # A header of another kind is a failed authentication, not an absent one.
            return token.strip() if kind.lower() == "bearer" and token.strip() else "?"
    return None


async def _refuse(send: Callable[[Any], Awaitable[None]]) -> None:
    body = json.dumps(
        {
            "error": "invalid_token",
            "error_description": (
                "a valid bearer token is required; operators create one with `diffing investigations new`, or set "
                "DIFFING_OPERATOR_TOKEN"
            ),
        }
    ).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"www-authenticate", b'Bearer error="invalid_token"'),
    ]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": body})
