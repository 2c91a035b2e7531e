"""Named tokens of operators, each with limits of its own, and the record of who called which tool when. Only a token's
SHA-256 is stored; the record holds neither arguments nor answers.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import time
from collections.abc import Sequence

from pydantic import BaseModel, Field

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.mcp_server.database import connect, transaction
from diffing_mcp.mcp_server.findings import OPERATOR_SCOPE

PREFIX = "diffing_"
"""So that a token is recognised as one wherever it turns up."""
KEPT_CALLS = 100_000
LONGEST_NAME = 100
OAUTH_PREFIX = "oauth:"
"""Before the subjects of an issuer's tokens, where names stand."""


class Grant(BaseModel):
    """What the holder of a token may do: an operator within limits. None: no limit."""

    name: str
    tools: tuple[str, ...] | None = Field(None, description="Names of the tools that may be used.")
    read_only: bool = Field(False, description="Nothing that trains, stores, deletes or unloads.")
    requests_per_minute: int | None = None
    request_bytes: int | None = None


class AccessRecord(BaseModel):
    """A stored token, without the token."""

    grant: Grant
    created: float
    revoked: float | None


class AuditedCall(BaseModel):
    """Who called which tool when."""

    when: float
    caller: str
    tool: str
    outcome: str
    seconds: float


def create(grant: Grant, known_tools: Sequence[str] = ()) -> str:
    """Store a grant and return its token, which cannot be had again.

    Raises:
        InvalidInput: the name is taken or would pass for somebody else's in the record of calls, or a limit is no
            positive number.
        UnknownName: a tool that does not exist.
    """
    name = grant.name
    if not name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:
        raise InvalidInput(f"a token's name is a printable text of 1 to {LONGEST_NAME} characters, on one line")
    if name == OPERATOR_SCOPE or name.startswith(OAUTH_PREFIX):
        raise InvalidInput(
            f"the record of calls says `{OPERATOR_SCOPE}` of operators without a token of their own and "
            f"`{OAUTH_PREFIX}...` of an issuer's; give this token another name"
        )
    if wrong := [tool for tool in grant.tools or () if tool not in known_tools]:
        raise UnknownName(f"unknown tools: {', '.join(wrong)}. There are: {', '.join(known_tools)}.", names_tools=True)
    if any(limit is not None and limit < 1 for limit in (grant.requests_per_minute, grant.request_bytes)):
        raise InvalidInput("limits are counts from 1 up; leave one out for no limit")
    token = f"{PREFIX}{secrets.token_urlsafe(32)}"
    try:
        with transaction() as connection:
            connection.execute(
                'INSERT INTO access_tokens (name, token_sha256, "grant", created) VALUES (?, ?, ?, ?)',
                (grant.name, _digest(token), grant.model_dump_json(), time.time()),
            )
    except sqlite3.IntegrityError:
        raise InvalidInput(f"there has been a token called {grant.name!r}; give this one another name") from None
    return token


def authenticate(token: str) -> Grant | None:
    """What a token allows, None when it is unknown or revoked. It is looked up by its digest, so the time says nothing
    about the token.
    """
    if not token.startswith(PREFIX):
        return None
    with connect() as connection:
        row = connection.execute(
            'SELECT "grant" FROM access_tokens WHERE token_sha256 = ? AND revoked IS NULL', (_digest(token),)
        ).fetchone()
    return Grant.model_validate_json(row[0]) if row is not None else None


def list_tokens() -> list[AccessRecord]:
    """All tokens, oldest first."""
    with connect() as connection:
        rows = connection.execute('SELECT "grant", created, revoked FROM access_tokens ORDER BY created').fetchall()
    return [
        AccessRecord(grant=Grant.model_validate_json(grant), created=created, revoked=revoked)
        for grant, created, revoked in rows
    ]


def revoke(name: str) -> None:
    """Refuse a token from now on.

    Raises:
        UnknownName: there is none of this name.
    """
    with transaction() as connection:
        changed = connection.execute(
            "UPDATE access_tokens SET revoked = coalesce(revoked, ?) WHERE name = ?", (time.time(), name)
        )
    if changed.rowcount == 0:
        names = ", ".join(row.grant.name for row in list_tokens())
        raise UnknownName(f"no token is called {name!r}. There are: {names or 'none'}.")


def is_revoked(name: str) -> bool:
    """Whether the token of this name is refused; one that is not ours never is."""
    with connect() as connection:
        row = connection.execute("SELECT revoked FROM access_tokens WHERE name = ?", (name,)).fetchone()
    return row is not None and row["revoked"] is not None


def record_call(caller: str, tool: str, outcome: str, seconds: float) -> None:
    """Add a call to the record, which keeps the newest."""
    with transaction() as connection:
        number = connection.execute(
            'INSERT INTO audit ("when", caller, tool, outcome, seconds) VALUES (?, ?, ?, ?, ?)',
            (time.time(), caller, tool, outcome, seconds),
        ).lastrowid
        connection.execute("DELETE FROM audit WHERE id <= ?", ((number or 0) - KEPT_CALLS,))


def recorded_calls(limit: int = 100) -> list[AuditedCall]:
    """The newest calls, newest first."""
    with connect() as connection:
        rows = connection.execute(
            'SELECT "when", caller, tool, outcome, seconds FROM audit ORDER BY id DESC LIMIT ?', (limit,)
        ).fetchall()
    return [AuditedCall(**dict(row)) for row in rows]


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
