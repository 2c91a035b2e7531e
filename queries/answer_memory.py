"""What models in memory have answered, by all that decides it. Torch-free.

The same questions with the same seed are put to one base for each of its finetunes, and to one pair by several
investigations.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.generation import Completion

Written = list[list["Completion"]]
"""Of each request its samples."""


class AnswerMemory:
    """The latest answers of this process. Thread-safe; whoever gets answers must not change them."""

    def __init__(self, most: int = 20_000) -> None:
        """`most`: completions that are kept; the oldest calls are forgotten first."""
        self._most = most
        self._kept = 0
        self._written: OrderedDict[Hashable, Written] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Written | None:
        """What was kept under an equal key."""
        with self._lock:
            if (found := self._written.get(key)) is not None:
                self._written.move_to_end(key)
            return found

    def keep(self, key: Hashable, written: Written) -> None:
        """Keep answers under what decides them."""
        with self._lock:
            self._kept -= _size(self._written.pop(key, []))
            self._written[key] = written
            self._kept += _size(written)
            while self._kept > self._most and self._written:
                _, oldest = self._written.popitem(last=False)
                self._kept -= _size(oldest)


def _size(written: Written) -> int:
    return sum(len(samples) for samples in written)
