"""The server as an OAuth resource server: tokens (JWT) of a configured issuer, checked against its published keys.
Handing out tokens is the issuer's business.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from functools import lru_cache
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.settings import settings
from diffing_mcp.mcp_server.access_tokens import OAUTH_PREFIX, Grant

if TYPE_CHECKING:
    import jwt

logger = logging.getLogger(__name__)

ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA")
"""Signatures by a private key alone: with a shared secret, whoever checks tokens could make them."""
SCOPE, READ_SCOPE = "diffing", "diffing:read"
KEYS_SECONDS = 600
REFRESH_SECONDS = 30
"""An unknown key has the keys fetched anew, at most this often: anybody can invent the name of one."""
RETRY_SECONDS = 5
"""After a fetch that failed nobody waits for another one so long: each may take seconds, and tokens of other kinds are
served meanwhile.
"""
LOCAL = ("127.0.0.1", "localhost", "::1")


class Issuer:
    """Checks tokens of one issuer for one audience. Thread-safe. The library is imported where there is an issuer."""

    def __init__(self, issuer: str, audience: str, keys_url: str) -> None:
        import jwt

        for url in (issuer, keys_url):
            parts = urlsplit(url)
            if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOCAL):
                raise InvalidInput(f"{url} of the OAuth issuer must be an https address")
        self.issuer = issuer
        self.audience = audience
        self._client = jwt.PyJWKClient(keys_url, lifespan=KEYS_SECONDS, timeout=5)
        self._lock = threading.Lock()
        self._refreshed = -math.inf
        self._failed = -math.inf

    def grant(self, token: str) -> Grant | None:
        """What a token allows; None for one that is not valid here. May fetch the issuer's keys."""
        import jwt

        try:
            key = self._key(jwt.get_unverified_header(token).get("kid"))
            if key is None:
                return None
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=list(ALGORITHMS),
                audience=self.audience,
                issuer=self.issuer,
                options={"require": ["exp", "iss", "aud", "sub"]},
                leeway=30,
            )
        except jwt.PyJWTError:
            return None
        except (ValueError, OSError, HTTPException) as error:  # what answers for the issuer gives no keys
            logger.warning("the keys of the OAuth issuer cannot be read: %s", error)
            return None
        scopes = str(claims.get("scope", "")).split()
        if SCOPE not in scopes and READ_SCOPE not in scopes:
            return None
        return Grant(name=f"{OAUTH_PREFIX}{claims['sub']}", read_only=SCOPE not in scopes)

    def _key(self, name: str | None) -> jwt.PyJWK | None:
        with self._lock:
            found = self._named(name, refresh=False)
            if found is None and time.monotonic() - self._refreshed > REFRESH_SECONDS:
                self._refreshed = time.monotonic()
                found = self._named(name, refresh=True)
        return found

    def _named(self, name: str | None, refresh: bool) -> jwt.PyJWK | None:
        if time.monotonic() - self._failed < RETRY_SECONDS:
            return None
        try:
            keys = self._client.get_signing_keys(refresh=refresh)
        except Exception:
            self._failed = time.monotonic()
            raise
        return next((key for key in keys if key.key_id == name), None)


def configured_issuer() -> Issuer | None:
    """The issuer that the settings name; None: there is none.

    Raises:
        InvalidInput: the settings name an issuer without an audience, or an address that is not https.
    """
    chosen = settings()
    if chosen.oauth_issuer is None:
        return None
    audience = chosen.oauth_audience or chosen.public_url
    if audience is None:
        raise InvalidInput("DIFFING_OAUTH_ISSUER needs DIFFING_OAUTH_AUDIENCE, or DIFFING_PUBLIC_URL, to be set too")
    keys = chosen.oauth_keys_url or f"{chosen.oauth_issuer.rstrip('/')}/.well-known/jwks.json"
    return _issuer(chosen.oauth_issuer, audience, keys)


@lru_cache(maxsize=4)
def _issuer(issuer: str, audience: str, keys_url: str) -> Issuer:
    return Issuer(issuer, audience, keys_url)
