"""Neutral texts to go on from and questions to answer, bundled, for the methods that generate. Torch-free."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

import yaml

BUNDLED_PREFILLS = 40
BUNDLED_QUESTIONS = 30
"""How many there are, known without reading the file."""

_FILE = Path(__file__).with_name("prefills.yaml")


@lru_cache(maxsize=1)
def _bundled() -> dict[str, tuple[str, ...]]:
    content = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return {"none": tuple(content["prefills"]), "chat": tuple(content["questions"])}


def bundled_prefills(template: Literal["none", "chat"]) -> tuple[str, ...]:
    """The bundled texts (`none`) or questions (`chat`)."""
    return _bundled()[template]
