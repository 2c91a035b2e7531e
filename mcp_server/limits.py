"""Rates and sizes of requests by the token that they come with."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

MOST_CALLERS = 10_000


class Rates:
    """A bucket of requests for each caller, filled evenly, as large as one minute's share."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, caller: str, per_minute: int) -> float:
        """Take one request. Seconds until there is one, when there is none now."""
        now = self._clock()
        left, since = self._buckets.pop(caller, (float(per_minute), now))
        left = min(float(per_minute), left + (now - since) * per_minute / 60)
        taken = left >= 1
        self._buckets[caller] = (left - 1 if taken else left, now)
        if len(self._buckets) > MOST_CALLERS:
            self._buckets.popitem(last=False)
        return 0.0 if taken else (1 - left) * 60 / per_minute
