"""Requests to an OpenAI-compatible server: several at a time, tried again where that helps, dropped when the work is
cancelled.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from diffing_mcp.core.certificates import trusted_certificates
from diffing_mcp.core.errors import DiffingError, InvalidInput
from diffing_mcp.core.loopback import through_proxies
from diffing_mcp.core.progress import Progress
from diffing_mcp.core.settings import settings
from diffing_mcp.model_pairs.endpoints import Endpoint

log = logging.getLogger(__name__)

_PASSING = frozenset([408, 409, 425, 429, 500, 502, 503, 504])
"""Statuses that may be gone a moment later."""
_TRIES = 4
_WAIT = 0.5
"""Seconds before the second try; doubled before each further one."""
_RATE_WAIT = 20
"""The same for a server that is asked too often (429) and does not say how long to wait, in units of `_WAIT`; as much
longer before each further try: three waits are a minute, by which rates are counted.
"""
_LONGEST_WAIT = 120.0
"""Seconds; a server that asks for more is not asked again."""
_LOOK = 0.5
"""Seconds between two looks whether the work was cancelled."""

A = TypeVar("A", bound=BaseModel)


class EndpointFailed(DiffingError):
    """A server that is reachable by URL alone does not answer, refuses, or answers something else. What it said is in
    the log, and not in the message: it is text from outside.
    """

    code = "endpoint_failed"


class EndpointRefused(EndpointFailed):
    """It answers that it does not do this (a status 4xx that no second try changes)."""


@dataclass(frozen=True)
class Call:
    """A path below the address (from the server's root where it begins with `/`), and the body without the model."""

    path: str
    body: dict[str, Any]


class EndpointClient:
    """A connection to one model of one server; close it when done. Thread-safe."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Raises InvalidInput when the variable that holds the key is not set."""
        self._endpoint = endpoint
        headers, self._key = {}, os.environ.get(endpoint.key_env or "", "").strip()
        if endpoint.key_env is not None:
            if not self._key:
                raise InvalidInput(f"The environment variable {endpoint.key_env}, which holds the key, is not set.")
            if not (self._key.isascii() and self._key.isprintable()):
                raise InvalidInput(
                    f"The environment variable {endpoint.key_env} holds what cannot be a key: other characters than "
                    "ASCII, or several lines."
                )
            headers["Authorization"] = f"Bearer {self._key}"
        heeded = through_proxies(endpoint.url)
        self._http = httpx2.Client(
            headers=headers,
            timeout=httpx2.Timeout(settings().endpoint_seconds, connect=10),
            trust_env=heeded,
            verify=trusted_certificates(heeded),
        )
        self._closed = threading.Event()

    @property
    def shown(self) -> str:
        """For messages."""
        return f"The endpoint of `{self._endpoint.model}`"

    def close(self) -> None:
        """Drop requests under way."""
        self._closed.set()
        self._http.close()

    def ask(self, calls: Sequence[Call], kind: type[A], progress: Progress, message: str) -> list[A]:
        """What the server answers to each call, in the order of the calls; `settings().endpoint_requests` at a time.

        Raises:
            EndpointRefused, EndpointFailed: the first call that fails; the others are dropped.
            Cancelled: when progress says so; it is asked every half second, and after each answer.
        """
        progress(0, len(calls), message)
        stopped = threading.Event()
        pool = ThreadPoolExecutor(settings().endpoint_requests, thread_name_prefix="endpoint")
        try:
            futures = [pool.submit(self._answer, call, kind, stopped) for call in calls]
            waiting = set(futures)
            while waiting:
                finished, waiting = wait(waiting, _LOOK, FIRST_COMPLETED)
                for future in finished:
                    future.result()
                progress(len(calls) - len(waiting), len(calls), message)
            return [future.result() for future in futures]
        finally:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, call: Call, kind: type[A], stopped: threading.Event) -> A:
        url = self._endpoint.url
        if call.path.startswith("/"):  # outside of the versioned protocol
            url = url.removesuffix("/v1")
        body = {"model": self._endpoint.model, **call.body}
        for attempt in range(_TRIES):
            delay = _WAIT * 2**attempt
            try:
                response = self._http.post(f"{url}/{call.path.lstrip('/')}", json=body)
            except httpx2.ReadTimeout:
                failure = EndpointFailed(
                    f"{self.shown} did not answer within {settings().endpoint_seconds:g} s, asked {_TRIES} times. "
                    "Raise DIFFING_ENDPOINT_SECONDS, or lower max_new_tokens or DIFFING_ENDPOINT_REQUESTS."
                )
            except httpx2.RequestError as error:
                failure = EndpointFailed(f"{self.shown} cannot be reached ({type(error).__name__}).")
            else:
                if response.is_success:
                    return self._read(response, kind)
                self._log(response, call.path)
                status, asked = response.status_code, _asked_delay(response)
                failure = self._failure(status, call.path)
                if status not in _PASSING:
                    raise failure
                if asked is not None and asked > _LONGEST_WAIT:
                    raise EndpointFailed(
                        f"{self.shown} answered {status} to /{call.path.lstrip('/')} and asks to wait {asked:,.0f} s: "
                        "a quota is used up. Call again then."
                    )
                delay = asked or (_WAIT * _RATE_WAIT * (attempt + 1) if status == 429 else delay)
            if attempt + 1 == _TRIES or _stops_within(delay, stopped) or self._closed.is_set():
                raise failure
        raise AssertionError("a try either answers or raises")

    def _read(self, response: httpx2.Response, kind: type[A]) -> A:
        try:
            return kind.model_validate_json(response.content)
        except ValidationError as error:
            log.warning("endpoint gave no %s: %s", kind.__name__, error)
            wrong = ", ".join(sorted({".".join(map(str, each["loc"])) for each in error.errors()})) or "no JSON"
            raise EndpointFailed(
                f"{self.shown} answered something that is not of the OpenAI protocol (wrong: {wrong})."
            ) from error

    def _log(self, response: httpx2.Response, path: str) -> None:
        """What a server said that answers no text; some repeat the key."""
        said = response.text.replace(self._key, "KEY") if self._key else response.text
        log.warning("endpoint answered %d to %s: %s", response.status_code, path, said[:1000])

    def _failure(self, status: int, path: str) -> EndpointFailed:
        said = f"{self.shown} answered {status} to /{path.lstrip('/')}"
        if status in (401, 403):
            return EndpointFailed(f"{said}: it wants another key. Name its variable in the address with `key_env`.")
        if status in _PASSING:
            return EndpointFailed(f"{said}, {_TRIES} times. Try again later, or lower DIFFING_ENDPOINT_REQUESTS.")
        if 400 <= status < 500:
            return EndpointRefused(
                f"{said}: it has no such model or path, or does not know what was asked for (a prefill, a system "
                "prompt, a conversation for a model without a chat template: then use raw_text). The log has its words."
            )
        return EndpointFailed(f"{said}. The log has its words.")


def _stops_within(seconds: float, stopped: threading.Event) -> bool:
    """Wait so long; whether the work was stopped in the meantime."""
    return stopped.wait(seconds)


def _asked_delay(response: httpx2.Response) -> float | None:
    """Seconds that the server asks to wait: it names them, or a date."""
    said = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        # By the server's own clock where it tells the time; dates without a zone are of no use.
        now = parsedate_to_datetime(response.headers["date"]) if "date" in response.headers else datetime.now(UTC)
        until = parsedate_to_datetime(said)
    except ValueError:
        return None
    return max(0.0, (until - now).total_seconds()) if until.tzinfo and now.tzinfo else None
