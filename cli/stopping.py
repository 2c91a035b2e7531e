"""Ctrl-C is answered at once, though what runs may need a moment to stop."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

STOPPING = "stopping; what is finished is kept (ctrl-C again ends at once)"


@contextlib.contextmanager
def saying_that_it_stops() -> Iterator[None]:
    """While the context lasts, the first SIGINT says so on stderr and raises KeyboardInterrupt; the next one raises it
    again, in the middle of whatever is being tidied up.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread has signals
        yield
        return

    stopped = False

    def stop(number: int, frame: Any) -> None:
        nonlocal stopped
        stopped = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        say_stopping()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    except SystemExit as end:
        if stopped and end.code:  # how the parser ends a command that was interrupted, without a word
            raise KeyboardInterrupt from end
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def say_stopping() -> None:
    """One line on stderr, below a progress bar where there is one."""
    print("\n" * sys.stderr.isatty() + STOPPING, file=sys.stderr, flush=True)
