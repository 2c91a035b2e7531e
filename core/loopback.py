"""Addresses of this machine, which only it reaches and which no proxy does."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether a host name or address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def through_proxies(url: str) -> bool:
    """Whether a request to this address heeds the proxies that the environment names (HTTP_PROXY). One to this machine
    does not: behind a proxy there is another machine of that address.
    """
    try:
        return not is_loopback(urlsplit(url).hostname or "")
    except ValueError:  # no address; whoever asks there says so
        return True
