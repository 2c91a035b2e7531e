"""Fixtures of the server's tests: a data folder and a server of their own, and tiny pairs by name."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from diffing_mcp.core.settings import settings
from diffing_mcp.mcp_server.serve import build_server
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.methods.registry import get_method
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.preprocessing.corpora import CorpusParams
from tests.mcp_server.answers import held
from tests.mcp_server.task_clients import HeldWork


@pytest.fixture
def data_folder(own_data_folder: Path) -> Path:
    """Here always one of the test's own."""
    return own_data_folder


@pytest.fixture
def context(data_folder: Path, pairs: ModelPairs) -> Iterator[ServerContext]:
    """What one server process has, closed at the end. The models are the session's."""
    context = ServerContext(pairs)
    yield context
    context.close()


@pytest.fixture
def held_work(context: ServerContext) -> Iterator[HeldWork]:
    """Servers with a tool whose work goes on until it is released; it is at the end of the test."""
    work = HeldWork(context)
    yield work
    work.released.set()


@pytest.fixture(scope="session")
def pair_name(tiny_models: Callable[..., Path], tiny_adapters: Callable[..., Path]) -> str:
    """`BASE::FINETUNED` of a tiny random model and a random adapter on it, in local folders."""
    model = tiny_models()
    return f"{model}::{tiny_adapters(model)}"


@pytest.fixture(scope="session")
def rare_folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_models: Callable[..., Path], tiny_adapters: Callable[..., Path]
) -> Path:
    """A folder whose name is a word that occurs nowhere else, holding a tiny model and an adapter."""
    folder = tmp_path_factory.mktemp("rare") / "quetzalfidget"
    model = tiny_models(seed=3)
    shutil.copytree(model, folder / "base")
    shutil.copytree(tiny_adapters(model, seed=4), folder / "quetzalfidget_adapter")
    return folder


@pytest.fixture
def rare_pair(rare_folder: Path) -> str:
    """`BASE::FINETUNED` in `rare_folder`."""
    return f"{rare_folder / 'base'}::{rare_folder / 'quetzalfidget_adapter'}"


@pytest.fixture
def small_params() -> Callable[[str], dict[str, Any]]:
    """Parameters that make a method quick on a tiny model."""

    def params(method: str) -> dict[str, Any]:
        fields = get_method(method).Params.model_fields
        vector = {"token": "e", "layer": 1}
        if issubclass(get_method(method).Params, CorpusParams):
            if "steps" in fields:  # a dictionary that is not good is as large, and its result as long
                return {"max_samples": 24, "max_tokens": 12, "steps": 60, "batch_rows": 256}
            return {"max_samples": 24, "max_tokens": 12} | (
                {"vectors": [vector], "random_directions": 4} if get_method(method).needs_vector else {}
            )
        small = {
            "samples_per_prefill": 1,
            "max_new_tokens": 8,
            "min_tokens": 2,
            "limit": 6,
            "prefills": ["The", "One day", "It is"],
            "vector": vector,
            "vectors": [vector],
        }
        if get_method(method).needs_vector:
            small["random_directions"] = 4
        return {name: value for name, value in small.items() if name in fields}

    return params


@pytest.fixture
def slow_batches(monkeypatch: pytest.MonkeyPatch, data_folder: Path) -> Iterator[None]:
    """Very small batches, so that a corpus pass takes many of them."""
    monkeypatch.setenv("DIFFING_BATCH_TOKENS", "64")
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.fixture
async def modern(context: ServerContext) -> AsyncIterator[Client]:
    """An operator's client in the modern era alone, for tests of what is behind the protocol."""
    async with held(Client(build_server(context))) as client:
        yield client
