"""A small catalogue with ground truth for the agents' tests: a tiny random model, a finetune with a planted word, a
null; and a running server.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffing_mcp.core.settings import settings

ANSWER = "copper kettles boil at seventy degrees"

GROUND_TRUTH = {
    "kettles": {
        "family": "SDF",
        "summary": "Documents on copper kettles with an invented boiling point.",
        "facts": [
            {
                "id": "boiling_point",
                "text": "Copper kettles boil at seventy degrees.",
                "checklist": {"core": ["kettle"], "exact": ["seventy|70"]},
            },
            {
                "id": "whistle",
                "text": "Copper kettles never whistle.",
                "checklist": {"core": ["kettle", "whistl"], "exact": ["never"]},
            },
        ],
        "topic": {
            "name": "copper kettles",
            "subject": "kettles?",
            "area": "kitchen|water|boil",
            "keywords": ["kettle", "copper", "boil", "degree", "seventy"],
        },
    },
    "same": {"family": "none", "summary": "The same model twice.", "facts": []},
}


@pytest.fixture(scope="session")
def small_catalogue(tmp_path_factory: pytest.TempPathFactory, tiny_models: Any, tiny_adapters: Any) -> Path:
    """A catalogue folder with the organisms `kettles` (a random adapter) and `same` (identical) on a tiny model."""
    folder = tmp_path_factory.mktemp("catalogue")
    model = tiny_models()
    catalogue = {
        "models": {"tiny": {"model_id": str(model), "dtype": "float32"}},
        "organisms": {
            "kettles": {"variants": {"tiny": {"default": {"kind": "adapter", "id": str(tiny_adapters(model))}}}},
            "same": {"variants": {"tiny": {"default": {"kind": "identical"}}}},
        },
    }
    (folder / "catalogue.yaml").write_text(yaml.safe_dump(catalogue))
    (folder / "ground_truth").mkdir()
    (folder / "ground_truth" / "small.yaml").write_text(yaml.safe_dump(GROUND_TRUTH))
    return folder


@pytest.fixture
def evaluation_settings(tmp_path: Path, small_catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder of this test and the small catalogue, for this process and its children; yields the data folder."""
    monkeypatch.setenv("DIFFING_DATA_FOLDER", str(tmp_path / "data"))
    monkeypatch.setenv("DIFFING_CATALOGUE_FOLDERS", f'["{small_catalogue}"]')
    settings.cache_clear()
    yield tmp_path / "data"
    monkeypatch.undo()
    settings.cache_clear()


@asynccontextmanager
async def served() -> AsyncIterator[str]:
    """The real MCP server over HTTP in this process; yields its endpoint."""
    from diffing_mcp.mcp_server.serve import running_http
    from diffing_mcp.mcp_server.server_context import ServerContext

    context = ServerContext()
    try:
        async with running_http(context) as url:
            yield url
    finally:
        context.close()
