"""The tutorial and the page of the Python API run as they are written."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from diffing_mcp.core.paths import IMPORT_FOLDER
from diffing_mcp.core.settings import settings

DOCS = IMPORT_FOLDER / "docs"
NOTEBOOK: dict[str, Any] = json.loads((DOCS / "tutorial.ipynb").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def shared_cache(own_folders: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's cache folder, which holds the converted embedded model."""
    monkeypatch.delenv("DIFFING_CACHE_FOLDER")
    settings.cache_clear()


def shown(cell: str, names: dict[str, Any]) -> Any:
    """Run a cell; the value of its last line, which a notebook would show."""
    tree = ast.parse(cell)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if isinstance(last, ast.Expr) else None


def test_the_tutorial_runs_and_every_cell_shows_something() -> None:
    names: dict[str, Any] = {}
    values = {}
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            value = values[cell["id"]] = shown("".join(cell["source"]), names)
            assert value is not None
            html = getattr(value, "_repr_html_", None)
            assert repr(value) if html is None else html()
    assert names["run"].result.stands_out
    assert set(names["dm"].list_runs()["id"]) == {names[name].id for name in ("run", "mined", "lens")}


def test_the_tutorial_is_stored_without_outputs() -> None:
    assert NOTEBOOK["nbformat"] == 4
    for cell in NOTEBOOK["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.long
def test_the_page_of_the_python_api_runs() -> None:
    text = (DOCS / "python-api.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        exec(compile(code, "python-api.md", "exec"), names)
    assert names["runs"][0].id == names["run"].id


def test_every_name_that_the_page_uses_is_promised() -> None:
    import diffing_mcp as dm

    used = set(re.findall(r"\bdm\.(\w+)", Path(DOCS / "python-api.md").read_text(encoding="utf-8")))
    assert used <= set(dm.__all__)
