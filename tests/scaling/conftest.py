"""The small catalogue of the agents' tests, and a batch on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.agents.conftest import evaluation_settings, small_catalogue

__all__ = ["evaluation_settings", "small_catalogue"]

SMALL = {"max_samples": 8, "max_tokens": 12}


@pytest.fixture
def batch_file(evaluation_settings: Path, tmp_path: Path) -> Path:
    """KL of both pairs with two seeds, and the weight difference, which has none."""
    file = tmp_path / "batch.yaml"
    wanted = {"pairs": ["kettles", "same"], "methods": {"kl": SMALL, "weight_difference": {}}, "seeds": [0, 1]}
    file.write_text(yaml.safe_dump(wanted), encoding="utf-8")
    return file
