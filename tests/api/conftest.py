"""A data folder and a cache folder of its own for every test, and a tiny pair as a notebook names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import diffing_mcp as dm


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_data_folder: Path) -> None:
    """Settings are read again with both folders by `own_data_folder`, which clears them before and after."""
    from diffing_mcp.core.settings import settings

    monkeypatch.setenv("DIFFING_CACHE_FOLDER", str(tmp_path / "cache"))
    settings.cache_clear()


@pytest.fixture
def pair(tiny_models: Callable[..., Path], tiny_adapters: Callable[..., Path]) -> dm.Pair:
    """A tiny random model and a random adapter on it, in local folders."""
    model = tiny_models()
    return dm.load_pair(str(model), tiny_adapters(model))


SMALL = {"max_samples": 12, "max_tokens": 10}
"""Parameters that make a corpus method quick."""
