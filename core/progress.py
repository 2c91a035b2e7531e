"""How long work reports where it is, and how it learns that it shall stop."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called between batches. Raises `diffing_mcp.core.errors.Cancelled` when the work shall stop.

    `done` and `total` count whatever the worker counts (tokens, steps); `total` is None while unknown.
    """

    def __call__(self, done: float, total: float | None = None, message: str = "") -> None: ...


def silent(done: float, total: float | None = None, message: str = "") -> None:
    """A progress that nobody watches and nobody cancels."""
