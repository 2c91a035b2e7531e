"""Models that are reachable by URL alone: how a side of a pair names one. No torch, and nothing is asked here.

    openai:http://host:8000/v1#model-name
    openai:https://host/v1?key_env=DIFFING_KEY_LAB#model-name

The address is that of an OpenAI-compatible server, and `key_env` the environment variable that holds its key; the key
itself stands nowhere. Only variables `DIFFING_KEY_*` may be named: a reference can come from an agent, and must not
send another secret of the environment to an address.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit, urlunsplit

from diffing_mcp.core.errors import InvalidInput

SCHEME = "openai:"
FORM = "`openai:http://host:8000/v1#model-name`, with `?key_env=DIFFING_KEY_NAME` before the `#` where a key is needed"
TEXT_TOOLS = ("ask_models", "test_hypothesis", "sweep_behaviours", "perplexity_difference")
"""What needs texts and no weights."""

_KEY_VARIABLE = re.compile(r"DIFFING_KEY_[A-Z0-9_]+")


class WeightsNeeded(InvalidInput):
    """A tool that reads weights or activations was called on a model that is reachable by URL alone."""

    code = "weights_needed"

    def __init__(self) -> None:
        super().__init__(
            "A side of this pair is reachable by URL alone, so its weights and activations cannot be read; tools that "
            f"work on it: {', '.join(TEXT_TOOLS)}."
        )


@dataclass(frozen=True)
class Endpoint:
    """A model of an OpenAI-compatible server."""

    url: str
    """Base address, such as `http://host:8000/v1`, without a slash at its end."""
    model: str
    key_env: str | None = None
    """Environment variable that holds the key."""


def is_endpoint(identifier: str) -> bool:
    """Whether the id of a model's files names an endpoint instead."""
    return identifier.startswith(SCHEME)


def read_endpoint(identifier: str) -> Endpoint:
    """The endpoint that an id names.

    Raises:
        InvalidInput: no http address, no model, a password in the address, or another variable than `DIFFING_KEY_*`.
    """
    try:
        parts = urlsplit(identifier.removeprefix(SCHEME))
        host = parts.hostname
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or not parts.fragment:
        raise InvalidInput(f"An endpoint is written {FORM}.")
    if parts.username is not None or parts.password is not None:
        raise InvalidInput("An endpoint's address holds no user and no password; its key comes from `key_env`.")
    options = parse_qs(parts.query, keep_blank_values=True)
    names = options.pop("key_env", [None])
    # What is wrong is not repeated: it may be a key.
    if options or len(names) > 1 or (names[0] is not None and not _KEY_VARIABLE.fullmatch(names[0])):
        raise InvalidInput(
            "The only option of an endpoint is `key_env`, the name of an environment variable DIFFING_KEY_NAME "
            "(capitals, digits and _) that holds the key; never the key itself."
        )
    address = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
    return Endpoint(address, parts.fragment, names[0])
