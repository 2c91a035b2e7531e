"""Who comes first on a device: equal shares for callers, and for each caller's jobs; what is new comes before what has
run for a while.

Time on the device is counted for each. Whoever has used least is next. Who comes in starts a little below the least
used of those who are there: so the first seconds of a question come at once, and nobody saves up turns by staying away.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

HEAD_START = 5.0
"""Seconds of work that come before the work of those who are there already."""
SLICE = 1.0
"""Seconds that one may be ahead of another before the turn changes: switching too often costs more than it gives."""


class Sharer(Protocol):
    """What takes turns: it belongs to a caller (`scope`). `urgent` work, which only has to stop, comes first, and of
    equals the `brief`."""

    @property
    def id(self) -> str: ...
    @property
    def scope(self) -> str: ...
    @property
    def urgent(self) -> bool: ...
    @property
    def brief(self) -> bool: ...


SharerT = TypeVar("SharerT", bound=Sharer)


@dataclass
class Level:
    """Equal shares of some keys. `used` are seconds on a clock that all keys share."""

    used: dict[str, float] = field(default_factory=dict)
    live: set[str] = field(default_factory=set)
    now: float = 0.0
    """The least used of those who are there, and never less than it was."""

    def enter(self, key: str) -> None:
        """The key wants turns from now on."""
        self._advance()
        self.used[key] = max(self.used.get(key, self.now - HEAD_START), self.now - HEAD_START)
        self.live.add(key)

    def leave(self, key: str) -> None:
        """It wants no more turns. What it used is remembered while that matters."""
        self._advance()
        self.live.discard(key)
        if not self.live:
            self.now = max(self.now, self.used[key])
        self.used = {
            other: used for other, used in self.used.items() if other in self.live or used > self.now - HEAD_START
        }

    def charge(self, key: str, seconds: float) -> None:
        """It had a turn of so many seconds."""
        self.used[key] += seconds

    def _advance(self) -> None:
        if self.live:
            self.now = max(self.now, min(self.used[key] for key in self.live))


class Shares:
    """The shares of one device, for callers and for the jobs of each. Not thread-safe."""

    def __init__(self) -> None:
        self._callers = Level()
        self._jobs: dict[str, Level] = {}

    def enter(self, job: Sharer) -> None:
        """The job wants turns from now on."""
        jobs = self._jobs.setdefault(job.scope, Level())
        if not jobs.live:
            self._callers.enter(job.scope)
        jobs.enter(job.id)

    def leave(self, job: Sharer) -> None:
        """It wants no more turns."""
        jobs = self._jobs[job.scope]
        jobs.leave(job.id)
        if not jobs.live:
            self._callers.leave(job.scope)
            del self._jobs[job.scope]

    def charge(self, job: Sharer, seconds: float) -> None:
        """It had a turn of so many seconds."""
        self._callers.charge(job.scope, seconds)
        self._jobs[job.scope].charge(job.id, seconds)

    def rank(self, job: Sharer) -> tuple[bool, float, float, bool]:
        """Sorts jobs: the smallest is next; equal ones go by who came first."""
        return not job.urgent, *self._used(job), not job.brief

    def instead_of(self, job: SharerT, waiting: Collection[SharerT]) -> SharerT | None:
        """Who of those `waiting` shall have the turn that `job` has now; None: it goes on."""
        if not waiting:
            return None
        best = min(waiting, key=self.rank)
        if best.urgent:
            return best
        if best.scope != job.scope and self._used(job)[0] - self._used(best)[0] > SLICE:
            return best
        own = [other for other in waiting if other.scope == job.scope]
        first = min(own, key=self.rank, default=None)
        return first if first is not None and self._used(job)[1] - self._used(first)[1] > SLICE else None

    def _used(self, job: Sharer) -> tuple[float, float]:
        return self._callers.used[job.scope], self._jobs[job.scope].used[job.id]
