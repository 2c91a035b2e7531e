"""Files that are there whole or not at all, and the versions that a stored result names. Torch-free."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import os
import platform
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffing_mcp.core.progress import Progress

if TYPE_CHECKING:
    from filelock import FileLock

_DELETING = ".deleting-"
_LIBRARIES = ("torch", "transformers", "peft", "nnterp", "nnsight", "numpy", "diffing-mcp")
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers of writes that find no room."""


def write_synced(path: Path, content: Any) -> None:
    """Write bytes and wait until they are on the disk, so that a later rename cannot become visible before them."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_synced(path: Path, content: Any, mode: int | None = None) -> None:
    """Write a file beside the old one and then put it in its place: a reader sees the old content or the new one, and
    of several writers at once the last one's.

    `mode`: who may read and write it (as of `chmod`), before anything is written; None: as for any new file.
    """
    beside = path.with_name(f".writing-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        if mode is not None:
            beside.touch()
            beside.chmod(mode)
        write_synced(beside, content)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def new_folder(parent: Path, prefix: str) -> Path:
    """A folder with a name of its own, for whoever may read the one that it is in: those of `tempfile` are for one
    user alone, and stay so when they are renamed.
    """
    folder = parent / f"{prefix}{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    return folder


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    with contextlib.suppress(OSError):  # not every file system lets a folder be synced
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def discard(folder: Path) -> None:
    """Remove a folder: it becomes invisible at once, by a new hidden name beside it, then its files go, and those of
    deletions that were cut off.

    Raises:
        FileNotFoundError: there is no such folder (any more).
    """
    folder.rename(folder.parent / f"{_DELETING}{uuid.uuid4().hex}")
    for doomed in folder.parent.glob(f"{_DELETING}*"):
        shutil.rmtree(doomed, ignore_errors=True)


@contextlib.contextmanager
def held(lock: FileLock, progress: Progress, message: str) -> Iterator[None]:
    """Hold a lock of the file system; while another process has it, `progress` says `message` twice a second and may
    cancel the wait.
    """
    from filelock import Timeout

    while True:
        try:
            lock.acquire(timeout=0.5)
            break
        except Timeout:
            progress(0, None, message)
    try:
        yield
    finally:
        lock.release()


def library_versions() -> dict[str, str]:
    """Versions of what decides numbers, of Python, and of this project's code."""
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[library] = importlib.metadata.version(library)
    return versions
