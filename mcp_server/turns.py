"""One device, many jobs: each has a thread of its own, and only the one whose turn it is works.

Turns change between batches, when the job that works reports its progress (`give_way`), as `shares` says. Not all jobs
are begun at once: one that waits for its turn keeps what it holds in memory.
"""

from __future__ import annotations

import logging
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from diffing_mcp.core.undivided import is_undivided, note_pause
from diffing_mcp.mcp_server.shares import Shares

logger = logging.getLogger(__name__)

MOST_BEGUN = 4
"""Jobs that are begun at the same time."""
MOST_BRIEF = 2
"""Brief jobs that may be begun besides, so that no number of long ones keeps a question waiting."""


@dataclass(eq=False)
class Ticket:
    """One job's place. `begin` starts its thread; it is called once, with the first turn."""

    id: str
    scope: str
    brief: bool
    begin: Callable[[], None]
    urgent: bool = False
    """It only has to stop."""
    alone: bool = False
    """It is begun when nothing else is, and nothing else is begun beside it: there was no room beside others."""
    begun: bool = False
    threaded: bool = False
    seconds: float = 0.0
    """What it has worked so far."""
    turn: threading.Event = field(default_factory=threading.Event)


class Turns:
    """The turns of one device. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._shares = Shares()
        self._waiting: list[Ticket] = []
        self._working: Ticket | None = None
        self._since = 0.0
        self._closed = False

    def join(self, ticket: Ticket) -> None:
        """Wait in line; `ticket.begin` is called at once when the device is free."""
        with self._lock:
            self._shares.enter(ticket)
            self._waiting.append(ticket)
            self._next()

    def leave(self, ticket: Ticket) -> None:
        """It is done, or never to be begun: whoever is next works."""
        with self._lock:
            if ticket is self._working:
                self._count()
                self._working = None
            elif ticket in self._waiting:
                self._waiting.remove(ticket)
            else:  # cancelled before it began, and gone already
                return
            ticket.begun = False
            self._shares.leave(ticket)
            self._next()

    def give_way(self, ticket: Ticket) -> None:
        """Called by the thread that works, between batches: returns at once, or after others have had their turn."""
        if is_undivided():
            return
        with self._lock:
            if ticket is not self._working:  # the process ends
                return
            self._count()
            other = self._shares.instead_of(ticket, self._ready())
            if other is None:
                return
            put_back, paused = _random_state(), self._since
            self._wait_in_line(ticket)
            self._give(other)
        self._pause(ticket, paused)
        put_back()

    def has_company(self, ticket: Ticket) -> bool:
        """Whether other jobs are begun besides."""
        with self._lock:
            return any(other is not ticket for other in self.begun())

    def wait_to_be_alone(self, ticket: Ticket) -> None:
        """Called by the thread that works: wait until nothing else is begun, and begin anew then."""
        with self._lock:
            if ticket is not self._working:
                return
            self._count()
            ticket.alone, ticket.begun = True, False
            paused, self._working = self._since, None
            self._wait_in_line(ticket)
            self._next()
        self._pause(ticket, paused)

    def hurry(self, ticket: Ticket) -> None:
        """Its next turn comes before all others: it only has to stop."""
        with self._lock:
            ticket.urgent = True
            self._next()

    def close(self) -> None:
        """Nobody waits any more: the process ends."""
        with self._lock:
            self._closed = True
            for ticket in self._waiting:
                ticket.turn.set()

    def seconds(self, ticket: Ticket) -> float:
        """What it has worked so far, the turn that it has now included."""
        with self._lock:
            return ticket.seconds + (self._clock() - self._since if ticket is self._working else 0.0)

    def begun(self) -> list[Ticket]:
        """Those that are begun; the one that works first."""
        with self._lock:
            working = [self._working] if self._working is not None else []
            return [*working, *(ticket for ticket in self._waiting if ticket.begun)]

    def line(self) -> list[Ticket]:
        """Those that are not begun, the next first."""
        with self._lock:
            return sorted((ticket for ticket in self._waiting if not ticket.begun), key=self._shares.rank)

    def _ready(self) -> list[Ticket]:
        """Who of those that wait may have a turn now: what is begun, and what there is a place for."""
        begun = self.begun()
        if any(ticket.alone for ticket in begun):
            return [ticket for ticket in self._waiting if ticket.begun]
        brief = sum(ticket.brief for ticket in begun)
        place = len(begun) - min(brief, MOST_BRIEF) < MOST_BEGUN
        place = place and not any(ticket.alone for ticket in self._waiting)
        return [
            ticket
            for ticket in self._waiting
            if ticket.begun
            or ticket.urgent
            or (not begun if ticket.alone else place or (ticket.brief and brief < MOST_BRIEF))
        ]

    def _next(self) -> None:
        if self._working is None and not self._closed and (ready := self._ready()):
            self._give(min(ready, key=self._shares.rank))

    def _give(self, ticket: Ticket) -> None:
        self._waiting.remove(ticket)
        self._working, self._since = ticket, self._clock()
        ticket.begun = True
        if ticket.threaded:
            ticket.turn.set()
            return
        try:
            ticket.begin()
            ticket.threaded = True
        except RuntimeError:
            # No thread can be started now. It stays in line, and whoever has one works meanwhile; else it is begun when
            # the next job comes or goes.
            logger.exception("no thread could be started")
            self._working, ticket.begun = None, False
            self._waiting.append(ticket)
            if threaded := [other for other in self._ready() if other.threaded]:
                self._give(min(threaded, key=self._shares.rank))

    def _count(self) -> None:
        """Charge the turn so far to whoever works."""
        if self._working is not None:
            now = self._clock()
            self._shares.charge(self._working, now - self._since)
            self._working.seconds += now - self._since
            self._since = now

    def _wait_in_line(self, ticket: Ticket) -> None:
        ticket.turn.clear()
        if self._closed:
            ticket.turn.set()
        self._waiting.append(ticket)

    def _pause(self, ticket: Ticket, since: float) -> None:
        ticket.turn.wait()
        note_pause(self._clock() - since)


def _random_state() -> Callable[[], None]:
    """Puts aside the random numbers that the whole process shares; what is returned puts them back. So a job draws what
    it would draw alone, whatever others draw between its batches."""
    states: list[Callable[[], None]] = []
    own = random.getstate()
    states.append(lambda: random.setstate(own))
    if (numpy := sys.modules.get("numpy")) is not None:
        numbers = numpy.random.get_state()
        states.append(lambda: numpy.random.set_state(numbers))
    if (torch := sys.modules.get("torch")) is not None:
        tensors = torch.get_rng_state()
        states.append(lambda: torch.set_rng_state(tensors))
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            on_devices = torch.cuda.get_rng_state_all()
            states.append(lambda: torch.cuda.set_rng_state_all(on_devices))

    def put_back() -> None:
        for state in states:
            state()

    return put_back
