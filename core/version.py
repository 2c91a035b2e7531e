"""The version of this project, which `pyproject.toml` states."""

from __future__ import annotations

import importlib.metadata
import tomllib

from diffing_mcp.core.paths import IMPORT_FOLDER

DISTRIBUTION = "diffing-mcp"


def version() -> str:
    """The version of the installed distribution; in a clone that is not installed, that of its `pyproject.toml`."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        project = IMPORT_FOLDER / "pyproject.toml"
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
