"""The SQLite file that holds investigations: its tables, and one way to open it that is safe for several processes at
once.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from diffing_mcp.core.settings import settings
from diffing_mcp.core.sqlite_schema import schema_version, upgrade, write_transaction

MIGRATIONS = (
    (
        """
        CREATE TABLE IF NOT EXISTS investigations (
            id TEXT PRIMARY KEY, label TEXT NOT NULL UNIQUE, token_sha256 TEXT NOT NULL, pair TEXT NOT NULL,
            tools TEXT NOT NULL, interactions INTEGER NOT NULL CHECK (interactions >= 0),
            tool_calls INTEGER NOT NULL CHECK (tool_calls >= 0), note TEXT NOT NULL DEFAULT '',
            created REAL NOT NULL, closed REAL)
        """,
        """
        CREATE TABLE IF NOT EXISTS reservations (
            id TEXT PRIMARY KEY, investigation TEXT NOT NULL REFERENCES investigations(id), budget TEXT NOT NULL,
            amount INTEGER NOT NULL CHECK (amount >= 0),
            state TEXT NOT NULL CHECK (state IN ('reserved', 'committed', 'refunded')),
            owner TEXT NOT NULL, what TEXT NOT NULL, created REAL NOT NULL)
        """,
        "CREATE INDEX IF NOT EXISTS reservations_of ON reservations (investigation, budget)",
        """
        CREATE TABLE IF NOT EXISTS calls (
            id INTEGER PRIMARY KEY AUTOINCREMENT, investigation TEXT NOT NULL REFERENCES investigations(id),
            tool TEXT NOT NULL, arguments TEXT NOT NULL, result TEXT NOT NULL, outcome TEXT NOT NULL,
            seconds REAL NOT NULL, budget TEXT NOT NULL, created REAL NOT NULL)
        """,
        "CREATE INDEX IF NOT EXISTS calls_of ON calls (investigation)",
        """
        CREATE TABLE IF NOT EXISTS hypotheses (
            number INTEGER NOT NULL, scope TEXT NOT NULL, statement TEXT NOT NULL, likelihood REAL NOT NULL,
            status TEXT NOT NULL, evidence TEXT NOT NULL, reasoning TEXT NOT NULL, created REAL NOT NULL,
            updated REAL NOT NULL, PRIMARY KEY (scope, number))
        """,
        """
        CREATE TABLE IF NOT EXISTS findings (
            scope TEXT NOT NULL, verdict TEXT NOT NULL, statement TEXT NOT NULL, likelihood REAL NOT NULL,
            evidence TEXT NOT NULL, created REAL NOT NULL)
        """,
        "CREATE UNIQUE INDEX IF NOT EXISTS one_finding ON findings (scope) WHERE scope <> 'operator'",
        """
        CREATE TABLE IF NOT EXISTS seen_runs (
            investigation TEXT NOT NULL REFERENCES investigations(id), run TEXT NOT NULL,
            PRIMARY KEY (investigation, run))
        """,
    ),
    ("ALTER TABLE investigations ADD COLUMN methods_pair TEXT",),
    (
        """
        CREATE TABLE hypothesis_tests (
            id TEXT NOT NULL, scope TEXT NOT NULL, test TEXT NOT NULL, created REAL NOT NULL, PRIMARY KEY (scope, id))
        """,
        """
        CREATE TABLE answered_prompts (
            scope TEXT NOT NULL, pair TEXT NOT NULL, prompt TEXT NOT NULL, PRIMARY KEY (scope, pair, prompt))
        """,
    ),
    (
        """
        CREATE TABLE lost_work (
            investigation TEXT NOT NULL REFERENCES investigations(id), what TEXT NOT NULL,
            interactions INTEGER NOT NULL)
        """,
        "CREATE INDEX lost_work_of ON lost_work (investigation)",
    ),
    (
        """
        CREATE TABLE access_tokens (
            name TEXT PRIMARY KEY, token_sha256 TEXT NOT NULL UNIQUE, "grant" TEXT NOT NULL, created REAL NOT NULL,
            revoked REAL)
        """,
        """
        CREATE TABLE audit (
            id INTEGER PRIMARY KEY AUTOINCREMENT, "when" REAL NOT NULL, caller TEXT NOT NULL, tool TEXT NOT NULL,
            outcome TEXT NOT NULL, seconds REAL NOT NULL)
        """,
    ),
    ("ALTER TABLE hypothesis_tests ADD COLUMN pair TEXT",),
)
"""From version to version, see `diffing_mcp.core.sqlite_schema`. Append; never change what is there."""


def database_path() -> Path:
    """Where investigations are kept: `investigations.sqlite` in the data folder."""
    return settings().data_folder / "investigations.sqlite"


@contextmanager
def connect(path: Path | None = None) -> Iterator[sqlite3.Connection]:
    """A connection outside of any transaction (WAL, 10 s busy time-out). Use `transaction` for writes. Older files are
    upgraded.

    Raises:
        NewerFile: a newer version of the program has written the file.
    """
    path = path or database_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=10, isolation_level=None)
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = NORMAL")
        if schema_version(connection) == 0:
            connection.execute("PRAGMA journal_mode = WAL")
        upgrade(connection, MIGRATIONS, path.name)
        _kept_open(path, path.stat().st_ino)
        yield connection
    finally:
        connection.close()


@lru_cache(maxsize=4)
def _kept_open(path: Path, _inode: int) -> sqlite3.Connection:
    """A connection that stays open, so that closing another one is not closing the last one, upon which SQLite writes
    the whole file to disk and removes the log: 14 ms for each of the several transactions of a call, instead of 0.5.
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    schema_version(connection)  # reading takes part in the log
    return connection


@contextmanager
def transaction(path: Path | None = None) -> Iterator[sqlite3.Connection]:
    """A write transaction: takes the write lock at once, commits at the end, rolls back on any exception."""
    with connect(path) as connection, write_transaction(connection):
        yield connection
