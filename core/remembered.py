"""What files hold, read again only when they changed: lists of many small files are asked for again and again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


class Remembered(Generic[T]):
    """Reads files and keeps what came of it, by path, time of change, size and inode. Safe from any thread; whoever
    gets a value must not change it.

    Args:
        read: a file -> what it holds; None where that cannot be read, which is never kept.
    """

    def __init__(self, read: Callable[[Path], T | None]) -> None:
        self._read = read
        self._known: dict[Path, tuple[tuple[int, int, int], T]] = {}

    def __call__(self, file: Path) -> T | None:
        """What the file holds now; None when it is gone or cannot be read."""
        try:
            status = file.stat()
        except OSError:
            self._known.pop(file, None)
            return None
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if (known := self._known.get(file)) is not None and known[0] == stamp:
            return known[1]
        if (value := self._read(file)) is not None:
            self._known[file] = (stamp, value)
        return value
