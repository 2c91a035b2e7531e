"""Whether two processes use one data folder."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path


def folder_identity(folder: Path) -> str:
    """16 hex digits: the same for two processes on one machine that use one folder, and nothing about its name."""
    return hashlib.sha256(f"{platform.node()}\0{folder.resolve()}".encode()).hexdigest()[:16]
