"""Names of evaluations and of their cells, under which they are stored."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable


def cell_id(organism: str, arm: str, investigator: str, repeat: int, alike: bool = False) -> str:
    """File-safe name of a cell; unique as long as names of organisms differ in more than punctuation and case. Those
    that do not are `alike` (`alike_in_files`), and are told apart by a digest.
    """
    parts = (f"{_file_safe(organism)}-{_digest(organism)}" if alike else organism, arm, investigator, f"r{repeat}")
    plain = "--".join(map(_file_safe, parts))
    return plain if len(plain) <= LONGEST_CELL_ID else "--".join(_file_safe(part, LONGEST_PART) for part in parts)


def alike_in_files(organisms: Iterable[str]) -> set[str]:
    """Those of different organisms whose file-safe names are one on some disk, but for the one that it belongs to."""
    found: dict[str, set[str]] = {}
    for organism in organisms:
        found.setdefault(_file_safe(organism).casefold(), set()).add(organism)
    return {organism for name, named in found.items() if len(named) > 1 for organism in named if organism != name}


LONGEST_CELL_ID, LONGEST_PART = 230, 60
"""File systems take names of 255 bytes, and a file that is being written has a longer one."""


def _file_safe(text: str, longest: int | None = None) -> str:
    """Punctuation as underscores; of what that does not tell apart, or makes no shorter than `longest`, a digest."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", text)
    if text.isascii() and (longest is None or len(safe) <= longest):
        return safe
    return f"{safe[:longest]}-{_digest(text)}"


IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def as_identifier(text: str) -> str:
    """The text as an evaluation's id: itself where it can be one, else what of it can, and a digest."""
    if IDENTIFIER.fullmatch(text):
        return text
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-_")
    return f"{safe[:80]}-{_digest(text)}".lstrip("-")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
