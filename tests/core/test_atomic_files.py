"""Files that are there whole or not at all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from diffing_mcp.core.atomic_files import discard, replace_synced


def test_a_discarded_folder_takes_cut_off_deletions_with_it(tmp_path: Path) -> None:
    for name in ("kept", "gone", ".deleting-before"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("content")
    discard(tmp_path / "gone")
    assert [folder.name for folder in tmp_path.iterdir()] == ["kept"]
    with pytest.raises(FileNotFoundError):
        discard(tmp_path / "gone")


def test_of_many_writers_one_has_written_the_whole_file(tmp_path: Path) -> None:
    contents = [bytes([letter]) * 200_000 for letter in b"abcdefgh"]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: replace_synced(tmp_path / "file", content), contents * 8))
    assert (tmp_path / "file").read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError):
        replace_synced(tmp_path / "file", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
