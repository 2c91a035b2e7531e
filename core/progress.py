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


class Phases:
    """A share of work that never falls, made of reports that begin anew with each phase. How many phases will come is
    not known: each takes nine tenths of what was left before it.
    """

    def __init__(self) -> None:
        self.share = 0.0
        """Of the whole, in [0, 1)."""
        self.number = 1
        self.of_phase = 0.0
        """Of the phase now, in [0, 1]."""
        self._before = 0.0

    def report(self, done: float, total: float | None) -> float:
        """The share after a report."""
        if total:
            reached = min(1.0, done / total)
            if reached < self.of_phase:
                self.number, self._before = self.number + 1, self.share
            self.of_phase = reached
            self.share = max(self.share, self._before + 0.9 * (1 - self._before) * reached)
        return self.share


def stage(progress: Progress, start: float, stop: float, whole: float, name: str) -> Progress:
    """Progress of one stage of the work, from `start` to `stop` of the `whole`, which never falls; its messages begin
    with `name`.
    """
    phases = Phases()

    def within(done: float, total: float | None = None, message: str = "") -> None:
        share = phases.report(done, total)
        progress(start + (stop - start) * share, whole, f"{name}{f': {message}' if message else ''}")

    return within
