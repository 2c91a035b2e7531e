"""What the holder of an investigation's token must not read: names, variants, ids, adapters and paths of the pair.

Results are built without them in the first place. This module is the second lock: it removes them from every text that
may come from elsewhere (errors, progress messages, headlines). In results only unmistakable strings are removed (paths,
full pair names, adapter ids): an organism may be called by an ordinary word, and taking that word out of a model's own
answers would change the evidence and give it away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffing_mcp.core.paths import IMPORT_FOLDER
from diffing_mcp.core.settings import settings
from diffing_mcp.mcp_server.investigations import Investigation
from diffing_mcp.model_pairs.specs import PairSpec


class Redactor:
    """Removes what identifies pairs from texts and replaces it by `label`. `pairs`: how each was asked for -> what it
    is.
    """

    def __init__(self, pairs: Mapping[str, PairSpec], label: str) -> None:
        self.label = label
        plain = {
            text
            for asked, spec in pairs.items()
            for text in (asked, spec.name, spec.organism, spec.variant, *_strings(spec.model_dump(mode="json")))
            if text and len(text) > 2
        }
        plain -= {"auto", "float32", "bfloat16", "float16", "default", "eager", "sdpa", "main"}
        paths = {str(path) for path in _folders() if len(path.parts) > 2}
        names = [name for asked, spec in pairs.items() for name in (asked, spec.name)]
        parts = {part for name in names for part in re.split(r"[/@:]+", name) if len(part) > 2} - {
            "embedded",
            "default",
        }
        self._strict = _pattern(plain | paths | parts)
        self._unmistakable = _pattern(
            {text for text in plain | paths if "/" in text or "\\" in text or "::" in text or "@" in text}
        )

    def message(self, text: str) -> str:
        """An error or progress message without names and paths."""
        return self._strict.sub(self.label, _ANY_PATH.sub("<path>", text)) if self._strict else text

    def result(self, value: Any) -> Any:
        """A JSON value without paths and full names."""
        if isinstance(value, str):
            return self._unmistakable.sub(self.label, value) if self._unmistakable else value
        if isinstance(value, dict):
            return {self.result(key): self.result(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.result(item) for item in value]
        return value


def redactor_of(investigation: Investigation) -> Redactor:
    """What hides this investigation's pair behind its label.

    Raises:
        DiffingError: the pair can no longer be resolved.
    """
    from diffing_mcp.model_pairs.resolve import resolve_pair

    names = filter(None, (investigation.pair, investigation.methods_pair))
    return Redactor({name: resolve_pair(name) for name in names}, investigation.label)


# Absolute paths of at least two parts: error texts of libraries love to name files.
_ANY_PATH = re.compile(r"(?<![\w/])(?:[A-Za-z]:)?(?:[/\\][\w.\-@+]+){2,}/?")


def _folders() -> list[Path]:
    chosen = settings()
    return [chosen.data_folder, chosen.cache_folder, *chosen.catalogue_folders, IMPORT_FOLDER]


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        # Chat templates are long and no secret.
        if len(value) <= 500:
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _pattern(texts: set[str]) -> re.Pattern[str] | None:
    if not texts:
        return None
    alternatives = "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True))
    return re.compile(rf"(?<![A-Za-z0-9])(?:{alternatives})(?![A-Za-z0-9])", re.IGNORECASE)
