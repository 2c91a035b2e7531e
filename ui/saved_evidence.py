"""What a person added to a pair's report by hand: conversations and heat maps, one file each under the data folder.

data_folder/evidence/<digest of the pair's name>/<id>.json
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from diffing_mcp.core.atomic_files import replace_synced
from diffing_mcp.methods.runs.store import RunStore
from diffing_mcp.ui.conversation import Conversation


class SavedEvidence(BaseModel):
    """One piece of evidence. Texts of models in it are UNTRUSTED."""

    model_config = ConfigDict(extra="ignore")

    pair_name: str
    pair: dict[str, Any] = Field(description="fingerprint.pair_identity of the models that answered.")
    id: str = Field(default_factory=lambda: secrets.token_hex(6))
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))
    note: str = ""
    conversation: Conversation | None = None
    heat_map: dict[str, Any] | None = Field(None, description="A result of `compare_text`.")


class EvidenceFolder:
    """The saved evidence of all pairs, beside the runs."""

    def __init__(self, store: RunStore) -> None:
        self._root = store.folder.with_name("evidence")

    def add(self, evidence: SavedEvidence) -> None:
        """Keep it."""
        folder = self._of(evidence.pair_name)
        folder.mkdir(parents=True, exist_ok=True)
        replace_synced(folder / f"{evidence.id}.json", evidence.model_dump_json(indent=1).encode())

    def list(self, pair_name: str) -> list[SavedEvidence]:
        """What there is on a pair, oldest first; files that are none are left out."""
        found = (_read(file) for file in self._of(pair_name).glob("*.json"))
        return sorted((each for each in found if each is not None), key=lambda each: each.created)

    def remove(self, pair_name: str, identifier: str) -> None:
        """Delete it; nothing happens when it is gone already."""
        if re.fullmatch(r"[0-9a-f]{12}", identifier):
            (self._of(pair_name) / f"{identifier}.json").unlink(missing_ok=True)

    def _of(self, pair_name: str) -> Path:
        return self._root / hashlib.sha256(pair_name.encode()).hexdigest()[:16]


def _read(file: Path) -> SavedEvidence | None:
    try:
        return SavedEvidence.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError, json.JSONDecodeError):
        return None
