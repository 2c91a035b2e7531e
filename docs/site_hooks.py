"""What the site makes of the pages as they are read in the repository: the README is its first page, and links to files
beside the documentation lead to the repository.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)]*)?\))")


def on_files(files: Any, config: Any) -> Any:
    """The README as the first page."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links as the site needs them.

    Raises:
        ValueError: one leads to no file.
    """
    readme = page.file.src_uri == "index.md"
    folder = ROOT if readme else (ROOT / "docs" / page.file.src_uri).parent

    def led(found: re.Match[str]) -> str:
        target = found.group(2)
        if "://" in target or target.startswith("mailto:"):
            return found.group(0)
        path = (folder / target).resolve()
        if not path.exists():
            raise ValueError(f"{page.file.src_uri} links to {target}, which is no file")
        if path.is_relative_to(ROOT / "docs") and path.suffix in (".md", ".png"):
            inside = path.relative_to(ROOT / "docs").as_posix()
            return f"{found.group(1)}{inside}{found.group(3)}" if readme else found.group(0)
        kind = "tree" if path.is_dir() else "blob"
        return f"{found.group(1)}{config.repo_url}/{kind}/main/{path.relative_to(ROOT).as_posix()}{found.group(3)}"

    return LINK.sub(led, markdown)
