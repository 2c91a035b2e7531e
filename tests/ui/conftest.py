"""Fixtures of the panel's tests: a data folder, and the panel served on a free port of this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parent / "plugin"
"""On the import path like an installed distribution: its dist-info declares a method under the entry-point group
`diffing.methods`.
"""


@dataclass(frozen=True)
class Paths:
    """What `build_panel` reads of the settings."""

    data_folder: Path


@pytest.fixture(scope="module")
def probe_method() -> Iterator[None]:
    """The plugin's method is in the registry."""
    from diffing_mcp.methods import registry

    sys.path.insert(0, str(PLUGIN))
    registry._registry.cache_clear()
    yield
    sys.path.remove(str(PLUGIN))
    registry._registry.cache_clear()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, probe_method: None) -> Paths:
    """A data folder with an evaluation and two runs."""
    from tests.ui.panel_data import write_evaluation, write_runs

    folder = tmp_path_factory.mktemp("panel")
    write_evaluation(folder)
    write_runs(folder)
    return Paths(folder)


@pytest.fixture(scope="module")
def panel(filled: Paths) -> Iterator[str]:
    """Address of the panel over the filled folder. No MCP server answers at its address."""
    from diffing_mcp.agents.server_process import free_port
    from diffing_mcp.ui.panel import launch

    demo, address = launch(
        port=0, prevent_thread_lock=True, paths=filled, server_url=f"http://127.0.0.1:{free_port()}/mcp"
    )
    yield address
    demo.close()
