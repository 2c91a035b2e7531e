"""Which adapter answers: the one that the catalogue knows for a base model, one named by hub id or folder, or none (the
base model itself). Torch-free.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import yaml

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.model_pairs.specs import AdapterFiles
from diffing_mcp.organisms.specs import ORGANISMS_FOLDER

_FOLDER = ORGANISMS_FOLDER / "verbalizers"
BUNDLED_RECIPE = _FOLDER / "smollm2-135m" / "recipe.yaml"
BUNDLED = "bundled"
SELF = "self"
Template = Literal["chat", "none"]
"""Whether questions are put as a chat message or as plain text."""


@dataclass(frozen=True)
class Verbalizer:
    """Who answers. Without an adapter the base model reads itself."""

    adapter: AdapterFiles | None
    template: Template


@dataclass(frozen=True)
class _Entry:
    base: str
    verbalizer: Verbalizer


@lru_cache(maxsize=1)
def _entries() -> tuple[_Entry, ...]:
    rows = yaml.safe_load((_FOLDER / "catalogue.yaml").read_text(encoding="utf-8"))["verbalizers"]
    return tuple(
        _Entry(
            row["base"],
            Verbalizer(
                AdapterFiles(id=str(_FOLDER / row["folder"]) if "folder" in row else row["id"]), row["template"]
            ),
        )
        for row in rows
    )


def known_names() -> tuple[str, ...]:
    """Values of the parameter that anybody may use: `bundled`, `self` and the hub ids of the catalogue."""
    hub = (
        entry.verbalizer.adapter.id
        for entry in _entries()
        if entry.verbalizer.adapter and not entry.verbalizer.adapter.id.startswith("/")
    )
    return (BUNDLED, SELF, *hub)


def choose_verbalizer(name: str | None, base: str) -> Verbalizer:
    """The verbalizer that `name` means for the base model with id `base`.

    Raises:
        InvalidInput: `bundled` for a base model without one.
    """
    own = next((entry.verbalizer for entry in _entries() if entry.base == base), None)
    if name == SELF or (name is None and own is None):
        return Verbalizer(None, "chat")
    if name in (None, BUNDLED):
        if own is None:
            raise InvalidInput(
                "No verbalizer is known for this base model. Leave `verbalizer` out, and the base model reads itself; "
                "or name an adapter."
            )
        return own
    named = next(
        (entry.verbalizer for entry in _entries() if entry.verbalizer.adapter and entry.verbalizer.adapter.id == name),
        None,
    )
    return named or Verbalizer(AdapterFiles(id=str(name)), "chat")


def verbalizer_key(name: str | None) -> dict[str, Any]:
    """What decides the answers besides the name: the catalogue and the adapter's content.

    Raises:
        InvalidInput: a named folder without an adapter.
    """
    from diffing_mcp.model_pairs.fingerprint import adapter_identity

    content = hashlib.sha256((_FOLDER / "catalogue.yaml").read_bytes()).hexdigest()
    adapters: dict[str, Any] = {}
    if name in (None, BUNDLED):
        for entry in _entries():
            if entry.verbalizer.adapter and entry.verbalizer.adapter.id.startswith("/"):
                adapters[entry.base] = adapter_identity(entry.verbalizer.adapter)
    elif name != SELF:
        adapters["named"] = adapter_identity(AdapterFiles(id=str(name)))
    return {"catalogue": content, "adapters": adapters}
