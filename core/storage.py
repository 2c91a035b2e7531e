"""What is said of a disk that is full, of what may not be written, and of a damaged database. Torch-free."""

from __future__ import annotations

import errno
import sqlite3

from diffing_mcp.core.atomic_files import DISK_FULL
from diffing_mcp.core.errors import DiffingError, OutOfRoom

_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_FULL_DATABASE = frozenset({sqlite3.SQLITE_FULL})
_FORBIDDEN_DATABASE = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM})
_DAMAGED_DATABASE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class StorageFailed(DiffingError):
    """Something cannot be written or read where it is kept. The message says what to put right."""

    code = "storage_failed"


def storage_error(error: BaseException) -> DiffingError | None:
    """The error to show for an exception of the file system or of a database; None: it is something else."""
    number, code = (error.errno if isinstance(error, OSError) else None), _sqlite_code(error)
    if number in DISK_FULL or code in _FULL_DATABASE:
        return OutOfRoom(
            "The disk is full. Free some space, or choose another folder with DIFFING_DATA_FOLDER, then do it again: "
            "what had finished is kept."
        )
    if number in _FORBIDDEN or code in _FORBIDDEN_DATABASE:
        return StorageFailed(
            "A file or folder may not be read or written by this user. Allow it, or choose another folder for results "
            "with DIFFING_DATA_FOLDER; `diffing doctor` says which can be written."
        )
    if code == sqlite3.SQLITE_BUSY:
        return StorageFailed("Another process keeps the database of investigations locked. Do it again in a moment.")
    if code in _DAMAGED_DATABASE:
        return StorageFailed(
            "The database of investigations, investigations.sqlite in the data folder, is damaged. Put back a copy of "
            "it, or move it away: runs are kept elsewhere."
        )
    return None


def _sqlite_code(error: BaseException) -> int | None:
    """The primary code of an error of SQLite, without what its extended codes add."""
    code = getattr(error, "sqlite_errorcode", None) if isinstance(error, sqlite3.Error) else None
    return None if code is None else code & 0xFF
