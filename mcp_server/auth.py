"""Who is calling: an operator, perhaps within the limits of a token, or the holder of an investigation's token.

Over HTTP every request passes `BearerGate`. Without a token a caller is an operator only when the server listens on
loopback and neither an operator token nor an OAuth issuer is configured. In memory and over stdio there are no
requests to authenticate; the process that starts the server says who its one client is.
"""

from __future__ import annotations

import hmac
import json
import math
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
from mcp.server.auth.middleware.auth_context import AuthContextMiddleware, get_access_token
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.routes import build_resource_metadata_url
from pydantic import AnyHttpUrl
from starlette.authentication import AuthCredentials

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.loopback import is_loopback
from diffing_mcp.core.settings import settings
from diffing_mcp.mcp_server import access_tokens, investigations
from diffing_mcp.mcp_server.access_tokens import Grant
from diffing_mcp.mcp_server.findings import OPERATOR_SCOPE
from diffing_mcp.mcp_server.investigations import Investigation
from diffing_mcp.mcp_server.limits import Rates
from diffing_mcp.mcp_server.oauth import configured_issuer

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Caller:
    """An operator (`investigation` is None: real names, no budgets; `grant`: within these limits) or the holder of an
    investigation's token.
    """

    investigation: Investigation | None = None
    grant: Grant | None = None

    @property
    def scope(self) -> str:
        """What separates the jobs, hypotheses and findings of callers from each other."""
        return self.investigation.id if self.investigation else OPERATOR_SCOPE

    @property
    def job_scope(self) -> str | None:
        """Whose jobs it may see: its own; None: all."""
        return self.investigation.id if self.investigation else None

    @property
    def operator(self) -> bool:
        return self.investigation is None

    @property
    def name(self) -> str:
        """Who it is, for the record of calls."""
        return self.grant.name if self.grant else self.scope

    @property
    def read_only(self) -> bool:
        """Whether it may not use what trains, stores, deletes or unloads."""
        return self.grant is not None and self.grant.read_only

    def may_use(self, tool: str, operator_only: bool = False) -> bool:
        """Whether the caller sees the tool at all. Whoever may use any can wait for its work."""
        if self.grant is not None:
            return self.grant.tools is None or tool in (*self.grant.tools, "get_job")
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
    if (grant := access_tokens.authenticate(token) or _oauth_grant(token)) is not None:
        return Caller(grant=grant)
    investigation = investigations.authenticate(token)
    return Caller(investigation) if investigation else None


def _oauth_grant(token: str) -> Grant | None:
    issuer = configured_issuer() if token.count(".") == 2 else None
    return issuer.grant(token) if issuer is not None else None


def check_exposed(host: str) -> None:
    """Refuse to listen where others reach the server while nobody could show a token.

    Raises:
        InvalidInput: which ways there are to hand out one.
    """
    if is_loopback(host) or settings().operator_token is not None or configured_issuer() is not None:
        return
    if any(row.revoked is None for row in access_tokens.list_tokens()):
        return
    if any(each.closed is None for each in investigations.list_investigations()):
        return
    raise InvalidInput(
        f"{host} can be reached from other machines, and there is no token yet that a client could show. Make one with "
        "`diffing tokens new NAME` or `diffing investigations new`, or set DIFFING_OPERATOR_TOKEN or "
        "DIFFING_OAUTH_ISSUER; or listen on 127.0.0.1."
    )


def open_access(host: str) -> bool:
    """Whether clients without a token are operators: loopback only, and only while neither an operator token nor an
    OAuth issuer is configured. Behind a reverse proxy everybody comes from loopback, those without a token too.
    """
    chosen = settings()
    return chosen.operator_token is None and chosen.oauth_issuer is None and is_loopback(host)


def current_caller(default: Caller | None) -> Caller:
    """The caller of the request being served; `default` outside of HTTP.

    Raises:
        InvalidInput: nobody authenticated this request.
    """
    access = get_access_token()
    if access is None:
        if default is None:
            raise InvalidInput("this request carries no valid token")
        return _now(default)
    if access.client_id != OPERATOR_SCOPE:
        return Caller(investigations.get(access.client_id))
    grant = (access.claims or {}).get("grant")
    return Caller(grant=Grant.model_validate(grant)) if grant is not None else OPERATOR


def _now(caller: Caller) -> Caller:
    """Who was let in when the process began, as it is now.

    Raises:
        InvalidInput: the investigation was closed since, or the token revoked.
    """
    if caller.grant is not None and access_tokens.is_revoked(caller.grant.name):
        raise InvalidInput("the token of this server has been revoked; ask the operator for another")
    if caller.investigation is None:
        return caller
    investigation = investigations.get(caller.investigation.id)
    if investigation.closed is not None:
        raise InvalidInput("this investigation is closed; nothing more is needed")
    return Caller(investigation)


class BearerGate:
    """ASGI wrapper: answers 401 unless the request's bearer token (or its absence, with `open_access`) stands for a
    caller, 429 and 413 where that caller's limits are passed.
    """

    def __init__(self, app: Asgi, *, open_access: bool, public_paths: frozenset[str] = frozenset({"/health"})) -> None:
        self.app = AuthContextMiddleware(app)
        self.open_access = open_access
        self.public_paths = public_paths
        self.rates = Rates()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self.public_paths:
            token = _bearer(scope)
            # The keys of an issuer may have to be fetched, which must not hold up everybody else.
            caller = (
                await anyio.to_thread.run_sync(_caller, token, self.open_access)
                if token is not None and token.count(".") == 2
                else _caller(token, self.open_access)
            )
            if caller is None:
                await _refuse(send, 401, "invalid_token", _NO_TOKEN, {"www-authenticate": _challenge()})
                return
            if (grant := caller.grant) is not None:
                if (limit := grant.request_bytes) is not None and not _is_smaller(scope, limit):
                    said = f"requests of this token may have {limit} bytes at most, and must say how many they have"
                    await _refuse(send, 413, "too_large", said)
                    return
                wait = self.rates.wait(grant.name, grant.requests_per_minute) if grant.requests_per_minute else 0.0
                if wait:
                    said = f"this token allows {grant.requests_per_minute} requests a minute"
                    await _refuse(send, 429, "too_many_requests", said, {"retry-after": str(math.ceil(wait))})
                    return
            scope["user"] = AuthenticatedUser(
                AccessToken(
                    token="",
                    client_id=caller.scope,
                    scopes=[],
                    # Whom a session of 2025 belongs to.
                    subject=caller.name,
                    claims={"grant": grant.model_dump()} if grant is not None else None,
                )
            )
            scope["auth"] = AuthCredentials([])
        await self.app(scope, receive, send)


def _caller(token: str | None, open_to_all: bool) -> Caller | None:
    return caller_of_token(token, open_access=open_to_all)


def _is_smaller(scope: Scope, limit: int) -> bool:
    """Whether a request says that it has at most so many bytes; uvicorn lets none send more than it says."""
    if scope["method"] in ("GET", "HEAD", "DELETE", "OPTIONS"):
        return True
    length = dict(scope["headers"]).get(b"content-length", b"")
    return bool(length.isdigit()) and int(length) <= limit


def _bearer(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name.lower() == b"authorization":
            kind, _, token = value.decode("latin-1").partition(" ")
            # A header of another kind is a failed authentication, not an absent one.
            return token.strip() if kind.lower() == "bearer" and token.strip() else "?"
    return None


_NO_TOKEN = (
    "a valid bearer token is required; operators create one with `diffing tokens new` or `diffing investigations new`, "
    "or set DIFFING_OPERATOR_TOKEN"
)


def _challenge() -> str:
    """What a client without a valid token is told; with an issuer, where it learns which."""
    public = settings().public_url
    if settings().oauth_issuer is None or public is None:
        return 'Bearer error="invalid_token"'
    return f'Bearer error="invalid_token", resource_metadata="{build_resource_metadata_url(AnyHttpUrl(public))}"'


async def _refuse(send: Send, status: int, code: str, said: str, headers: Mapping[str, str] = {}) -> None:
    body = json.dumps({"error": code, "error_description": said}).encode()
    lines = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    encoded = [(name.encode(), value.encode()) for name, value in lines.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
