"""Schema versions of SQLite files: `PRAGMA user_version` counts the migrations that a file has been through; and the
one way to write to them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from diffing_mcp.core.errors import DiffingError


class NewerFile(DiffingError):
    """A file was written by a newer version of the program. The message says what to do."""

    code = "newer_file"


def schema_version(connection: sqlite3.Connection) -> int:
    """How many migrations the file has been through; 0 when it is empty or older than schema versions."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def refuse_newer(connection: sqlite3.Connection, migrations: Sequence[Sequence[str]], name: str) -> None:
    """See `upgrade`, for whoever only reads a file.

    Raises:
        NewerFile: the file has been through more migrations than there are here.
    """
    version = schema_version(connection)
    if version > len(migrations):
        raise NewerFile(
            f"{name} was written by a newer version of this program (schema {version}; this one knows up to "
            f"{len(migrations)}). Update diffing-mcp, or choose another data folder with DIFFING_DATA_FOLDER."
        )


def upgrade(connection: sqlite3.Connection, migrations: Sequence[Sequence[str]], name: str) -> None:
    """Bring a file to the newest schema, all or nothing, also while other processes do the same.

    Args:
        connection: in autocommit mode (`isolation_level=None`), outside of a transaction.
        migrations: the statements that lead from version 0 to 1, from 1 to 2, and so on. The first ones must do for an
            empty file and for one that was made before files had versions (`IF NOT EXISTS`). Only ever append.
        name: how messages call the file.

    Raises:
        NewerFile: the file has been through more migrations than there are here; it is left as it is.
    """
    if schema_version(connection) == len(migrations):
        return
    with write_transaction(connection):
        refuse_newer(connection, migrations, name)
        for statements in migrations[schema_version(connection) :]:  # another process may have been first
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(migrations)}")


@contextmanager
def write_transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Takes the write lock at once, commits at the end, rolls back on any exception.

    Args:
        connection: in autocommit mode (`isolation_level=None`), outside of a transaction.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:  # a full disk has ended it already
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
