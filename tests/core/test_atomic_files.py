"""Files that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffing_mcp.core.atomic_files import discard


def test_a_discarded_folder_takes_cut_off_deletions_with_it(tmp_path: Path) -> None:
    for name in ("kept", "gone", ".deleting-before"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("content")
    discard(tmp_path / "gone")
    assert [folder.name for folder in tmp_path.iterdir()] == ["kept"]
    with pytest.raises(FileNotFoundError):
        discard(tmp_path / "gone")
