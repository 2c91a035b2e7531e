"""Where the code lies."""

from __future__ import annotations

from pathlib import Path

# Resolved last: in a clone the rooms inside the package are links, and the parents of what they lead to are others.
IMPORT_FOLDER = Path(__file__).absolute().parents[2].resolve()
"""The folder that holds the package `diffing_mcp`: a clone, or site-packages."""
