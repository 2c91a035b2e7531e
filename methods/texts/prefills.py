"""Neutral texts to go on from and questions to answer, bundled, for the methods that generate. Torch-free."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Literal

import yaml

from diffing_mcp.core.errors import InvalidInput

BUNDLED_PREFILLS = 40
BUNDLED_QUESTIONS = 30
"""How many there are, known without reading the file."""

_FILE = Path(__file__).with_name("prefills.yaml")


@lru_cache(maxsize=1)
def _bundled() -> dict[str, tuple[str, ...]]:
    content = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return {"none": tuple(content["prefills"]), "chat": tuple(content["questions"])}


def prefills_for(template: Literal["none", "chat"], prefills: tuple[str, ...] | None) -> tuple[str, ...]:
    """The given prefills, or the bundled ones of that template.

    Raises:
        InvalidInput: an empty list, or an empty prefill.
    """
    if prefills is None:
        return _bundled()[template]
    if not prefills or any(not prefill.strip() for prefill in prefills):
        raise InvalidInput(
            "prefills must hold at least one text, and none of them may be empty; leave it out for the bundled ones."
        )
    return prefills


def prefill_digest(template: Literal["none", "chat"], prefills: tuple[str, ...] | None) -> str:
    """sha256 of the prefills' texts."""
    return hashlib.sha256(json.dumps(prefills_for(template, prefills)).encode()).hexdigest()
