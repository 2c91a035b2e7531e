"""The SQLite file of investigations: older and newer files, several openers at once."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from diffing_mcp.core.sqlite_schema import NewerFile, schema_version
from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.database import MIGRATIONS, connect, database_path
from diffing_mcp.mcp_server.ledger import Ledger

OLDER = Path(__file__).parent / "investigations_without_version.sql"
TOKEN = "a1b2c3d4e5f6.an-older-secret"


def plain(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    return sqlite3.connect(path, isolation_level=None)


def test_a_file_without_a_version_opens_with_all_it_holds(data_folder: Path) -> None:
    older = plain(database_path())
    older.executescript(OLDER.read_text())
    assert schema_version(older) == 0
    older.close()
    investigation = investigations.authenticate(TOKEN)
    assert investigation is not None
    record = investigations.show(investigation.id)
    assert (record.budget.interactions_left, len(record.calls)) == (43, 1)
    assert [hypothesis.statement for hypothesis in record.hypotheses] == ["About cakes."]
    assert [finding.statement for finding in record.findings] == ["Cakes."]
    assert investigations.close(investigation.id).run_ids == ["kl-1f3a9c"]
    with connect() as connection:
        assert schema_version(connection) == len(MIGRATIONS)


def test_a_newer_file_is_refused_and_left_alone(data_folder: Path) -> None:
    with connect() as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    for opened in (investigations.list_investigations, lambda: Ledger().recover()):
        with pytest.raises(NewerFile, match=r"investigations.sqlite was written by a newer version"):
            opened()
    assert schema_version(plain(database_path())) == len(MIGRATIONS) + 1


def test_a_fresh_file_may_be_opened_by_many_at_once(tmp_path: Path) -> None:
    def opened(_: int) -> tuple[int, int]:
        with connect(tmp_path / "fresh.sqlite") as connection:
            return schema_version(connection), connection.execute("SELECT count(*) FROM findings").fetchone()[0]

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(opened, range(64))) == {(len(MIGRATIONS), 0)}


def test_a_transaction_does_not_write_the_whole_file_to_disk(data_folder: Path) -> None:
    """As closing the last connection does, which then removes the log."""
    for _ in range(2):
        investigations.list_investigations()
        assert database_path().with_name("investigations.sqlite-wal").exists()
