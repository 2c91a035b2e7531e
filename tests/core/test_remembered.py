"""Files are read again only when they changed."""

from __future__ import annotations

import os
from pathlib import Path

from diffing_mcp.core.remembered import Remembered


def test_a_file_is_read_once_until_it_changes(tmp_path: Path) -> None:
    reads: list[Path] = []

    def read(file: Path) -> str | None:
        reads.append(file)
        return file.read_text(encoding="utf-8") or None

    file, remembered = tmp_path / "a.txt", Remembered(read)
    assert remembered(file) is None
    assert reads == []
    file.write_text("one", encoding="utf-8")
    assert (remembered(file), remembered(file)) == ("one", "one")
    assert len(reads) == 1
    os.utime(file, ns=(1, 1))
    assert remembered(file) == "one"
    assert len(reads) == 2
    file.write_text("", encoding="utf-8")
    assert (remembered(file), remembered(file)) == (None, None), "what cannot be read is tried again"
    assert len(reads) == 4
    file.unlink()
    assert remembered(file) is None
