"""What was there before the project became one package: stored runs open, and methods report the same numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diffing_mcp.core.settings import settings
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunStore
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.model_pairs.resolve import resolve_pair

HERE = Path(__file__).parent
TEXT = {"max_samples": 24, "max_tokens": 16}
READING = ("kl", "logit_diff_topk_occurring", "activation_difference_lens", "activation_analysis", "pca")


def test_an_old_run_folder_opens(tmp_path: Path) -> None:
    stored = HERE / "run_of_version_0_0"
    manifest = json.loads((stored / "manifest.json").read_text())
    shutil.copytree(stored, tmp_path / manifest["key"])
    record = RunStore(tmp_path).get(manifest["id"])
    assert record.result().headline == json.loads((stored / "result.json").read_text())["headline"]
    assert record.remarks == []
    for view in get_method("kl").views.values():
        assert view.run(record, view.Params()).model_dump()
    for name in manifest["tables"]:
        assert record.table(name).num_rows == manifest["tables"][name]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of everything in JSON that is no list or object."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path, value
        return
    for key, item in items:
        yield from leaves(item, f"{path}/{key}")


@pytest.mark.long
def test_methods_report_the_numbers_that_they_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, on two bundled pairs; written by the last version with many packages."""
    monkeypatch.setenv("DIFFING_DTYPE", "float32")
    settings.cache_clear()
    before = json.loads((HERE / "numbers_before_the_package.json").read_text())
    asked = {"cake_bake": [*((name, TEXT) for name in READING), ("weight_difference", {})], "control": [("kl", TEXT)]}
    for pair, requests in asked.items():
        for record in run_methods(ModelPairs(), resolve_pair(pair), requests, RunStore(tmp_path)):
            now = dict(leaves(record.result_json()))
            then = dict(leaves(before[f"{pair}/{record.manifest.method}"]))
            assert now.keys() == then.keys()
            for path, value in then.items():
                number = isinstance(value, float)
                assert now[path] == (pytest.approx(value, rel=1e-3, abs=1e-6) if number else value), path
    settings.cache_clear()
