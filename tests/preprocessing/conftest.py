"""A tiny pair, texts and a store of collections with small shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from diffing_mcp.model_pairs.pair import LoadedPair
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.preprocessing import activation_collection
from diffing_mcp.preprocessing.activation_store import ActivationStore, default_activation_store
from tests.preprocessing.plain_rows import change
from tests.word_pairs import save_pair, write_texts


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedPair]:
    with ModelPairs().use(save_pair(tmp_path_factory.mktemp("activations"), change)) as pair:
        yield pair


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_texts(tmp_path_factory.mktemp("texts") / "texts.jsonl", 60, 20))


@pytest.fixture
def store(own_data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> ActivationStore:
    """The store of a fresh data folder, with shards of about 100 rows of two float32 layers."""
    monkeypatch.setattr(activation_collection, "SHARD_BYTES", 100 * 2 * 2 * 32 * 4)
    return default_activation_store()
