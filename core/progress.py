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


def stage(progress: Progress, start: float, stop: float, whole: float, name: str) -> Progress:
    """Progress of one stage of the work, from `start` to `stop` of the `whole`; its messages begin with `name`."""

    def within(done: float, total: float | None = None, message: str = "") -> None:
        share = min(1.0, done / total) if total else 0.0
        progress(start + (stop - start) * share, whole, f"{name}{f': {message}' if message else ''}")

    return within
