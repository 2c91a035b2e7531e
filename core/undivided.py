"""Sections of work that must not be divided: where something is switched on that other work of this process shares.

Work on models gives way to other work when it reports its progress. It does not while its thread is in an `undivided`
section: a model's lock is one, and so nothing else runs on a model between switching its adapter on and the pass.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class _OfThread(threading.local):
    depth = 0
    paused = 0.0


_own = _OfThread()


@contextmanager
def undivided() -> Iterator[None]:
    """Within it the work of this thread does not give way. Say at the place of use what must not be divided."""
    _own.depth += 1
    try:
        yield
    finally:
        _own.depth -= 1


def is_undivided() -> bool:
    """Whether this thread is in an `undivided` section."""
    return _own.depth > 0


class UndividedLock:
    """A reentrant lock whose holder does not give way: whoever has the turn never finds it taken by one who waits."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def acquire(self, blocking: bool = True) -> bool:
        """Take the lock; False when it is taken and `blocking` is."""
        taken = self._lock.acquire(blocking)
        _own.depth += taken
        return taken

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()
        _own.depth -= 1

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *raised: object) -> None:
        self.release()


def note_pause(seconds: float) -> None:
    """This thread waited so long while other work had its turn."""
    _own.paused += seconds


def working_time() -> float:
    """Seconds of a clock that stands still while this thread gives way; only differences mean something."""
    return time.monotonic() - _own.paused
