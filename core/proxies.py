"""Proxies of the environment (`http_proxy`) are for other machines: a proxy knows no server of this one."""

from __future__ import annotations

import os

_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


def reach_this_machine_directly() -> None:
    """Take this machine's own addresses out of what goes through a proxy, here and in child processes. Called by
    whoever is about to call a server that may run here; the clients of HTTP read the environment when they are made.
    """
    # The lower-case name is the one that counts where both are there.
    known = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    names = [name for name in (part.strip() for part in known.split(",")) if name]
    if "*" not in names and (missing := [name for name in _THIS_MACHINE if name not in names]):
        os.environ["no_proxy"] = ",".join([*names, *missing])
