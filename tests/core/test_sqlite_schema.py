"""Schema versions of SQLite files."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from diffing_mcp.core.sqlite_schema import NewerFile, schema_version, upgrade, write_transaction

STEPS: Sequence[Sequence[str]] = (
    ("CREATE TABLE IF NOT EXISTS things (name TEXT)",),
    ("ALTER TABLE things ADD COLUMN size INTEGER NOT NULL DEFAULT 3", "UPDATE things SET name = name || '!'"),
)


def test_migrations_run_once_each_from_where_the_file_is(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "things.sqlite", isolation_level=None)
    upgrade(connection, STEPS[:1], "things.sqlite")
    connection.execute("INSERT INTO things VALUES ('cake')")
    for _ in range(2):
        upgrade(connection, STEPS, "things.sqlite")
    assert connection.execute("SELECT * FROM things").fetchall() == [("cake!", 3)]
    assert schema_version(connection) == 2
    with pytest.raises(NewerFile, match="schema 2; this one knows up to 1"):
        upgrade(connection, STEPS[:1], "things.sqlite")


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "things.sqlite", isolation_level=None)
    upgrade(connection, STEPS[:1], "things.sqlite")
    broken = (*STEPS, ("UPDATE nothing SET name = 'x'",))
    with pytest.raises(sqlite3.OperationalError, match="nothing"):
        upgrade(connection, broken, "things.sqlite")
    assert schema_version(connection) == 1
    assert [row[1] for row in connection.execute("PRAGMA table_info(things)")] == ["name"]


def test_what_ends_a_transaction_by_itself_is_said_and_not_its_rollback(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "full.sqlite", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE rows (text)")
        connection.execute("PRAGMA max_page_count = 20")  # beyond it SQLite says that the disk is full
        with pytest.raises(sqlite3.OperationalError, match="full"), write_transaction(connection):
            connection.executemany("INSERT INTO rows VALUES (?)", (["x" * 1000] for _ in range(1000)))
        assert connection.execute("SELECT count(*) FROM rows").fetchone() == (0,)
        with pytest.raises(ValueError, match="mine"), write_transaction(connection):  # noqa: PT012
            connection.execute("INSERT INTO rows VALUES ('x')")
            raise ValueError("mine")
        assert connection.execute("SELECT count(*) FROM rows").fetchone() == (0,)
