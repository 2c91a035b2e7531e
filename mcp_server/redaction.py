"""What the holder of an investigation's token must not read: names, variants, ids, adapters and paths of the pair.

Results are built without them in the first place. This module is the second lock: it removes them from every text that
may come from elsewhere (errors, progress messages, headlines). In results only unmistakable strings are removed (paths,
full pair names, adapter ids): an organism may be called by an ordinary word, and taking that word out of a model's own
answers would change the evidence and give it away.

An answer may also repeat what the holder of the token wrote. So all pairs of the catalogue are removed alike: were only
its own, whoever writes down the names of the catalogue would see which of them is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from diffing_mcp.core.errors import DiffingError
from diffing_mcp.core.paths import IMPORT_FOLDER
from diffing_mcp.core.settings import settings
from diffing_mcp.mcp_server.investigations import Investigation
from diffing_mcp.model_pairs.specs import PairSpec


class Redactor:
    """Removes what identifies pairs from texts and replaces it by `label`.

    Args:
        pairs: how each was asked for -> what it is.
        label: what stands in place of it.
        others: what identifies other pairs, removed as well.
        words: words that the tools themselves use. They name no pair to their reader, and an argument whose name
            changes with the pair would.
    """

    def __init__(
        self,
        pairs: Mapping[str, PairSpec],
        label: str,
        others: Collection[str] = (),
        words: Collection[str] = (),
    ) -> None:
        self.label = label
        plain = {text for asked, spec in pairs.items() for text in (asked, *_texts_of(spec))}
        plain = {text for text in (*plain, *others) if len(text) > 2 and text not in _OF_ANY_PAIR}
        paths = {str(path) for path in _folders() if len(path.parts) > 2}
        names = [name for asked, spec in pairs.items() for name in (asked, spec.name)]
        parts = {part for name in names for part in re.split(r"[/@:]+", name) if len(part) > 2} - {
            "embedded",
            "default",
        }
        self._strict = {text.lower() for text in plain | paths | parts} - {*words}
        self._unmistakable = {text.lower() for text in plain | paths if _is_unmistakable(text)}

    def message(self, text: str) -> str:
        """An error or progress message without names and paths."""
        return self._without(self._strict, _ANY_PATH.sub("<path>", text))

    def result(self, value: Any) -> Any:
        """A JSON value without paths and full names."""
        if isinstance(value, str):
            return self._without(self._unmistakable, value) if _is_unmistakable(value) else value
        if isinstance(value, dict):
            return {self.result(key): self.result(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.result(item) for item in value]
        return value

    def _without(self, secrets: Iterable[str], text: str) -> str:
        # A pattern of all of them would try each at every character of long answers.
        lowered = text.lower()
        present = [secret for secret in secrets if secret in lowered]
        return _pattern(present).sub(lambda found: self.label, text) if present else text


def redactor_of(investigation: Investigation, words: Collection[str] = ()) -> Redactor:
    """What hides this investigation's pair behind its label. `words`: see `Redactor`.

    Raises:
        DiffingError: the pair can no longer be resolved.
    """
    from diffing_mcp.model_pairs.resolve import resolve_pair

    names = filter(None, (investigation.pair, investigation.methods_pair))
    pairs = {name: resolve_pair(name) for name in names}
    return Redactor(pairs, investigation.label, _of_catalogue(tuple(settings().catalogue_folders)), words)


@lru_cache(maxsize=2)
def _of_catalogue(folders: tuple[Any, ...]) -> frozenset[str]:
    """What identifies the pairs of the catalogue, in all forms in which they can be asked for. `folders`: where else
    the catalogue is, by which it is read once.
    """
    from diffing_mcp.model_pairs.resolve import resolve_pair
    from diffing_mcp.organisms.catalogue import load_catalogue

    catalogue = load_catalogue()
    found: set[str] = set()
    for organism in catalogue.organisms.values():
        for model, variants in organism.variants.items():
            models = (model, *catalogue.models[model].aliases)
            found.update(models)
            for variant in variants:
                named = (organism.name, f"{organism.name}/{variant}")
                found |= {*named, *(f"{name}@{model_name}" for name in named for model_name in models)}
                with suppress(DiffingError):  # an entry that cannot be resolved is nobody's pair
                    found |= {*_texts_of(resolve_pair(f"{organism.name}/{variant}@{model}"))}
    return frozenset(found)


_OF_ANY_PAIR = frozenset({"auto", "float32", "bfloat16", "float16", "default", "eager", "sdpa", "main"})


# Absolute paths of at least two parts: error texts of libraries love to name files.
_ANY_PATH = re.compile(r"(?<![\w/])(?:[A-Za-z]:)?(?:[/\\][\w.\-@+]+){2,}/?")


def _folders() -> list[Path]:
    chosen = settings()
    return [chosen.data_folder, chosen.cache_folder, *chosen.catalogue_folders, IMPORT_FOLDER]


def _is_unmistakable(text: str) -> bool:
    """Whether a text has what names of pairs, ids and paths have and words have not."""
    return any(mark in text for mark in ("/", "\\", "::", "@"))


def _texts_of(spec: PairSpec) -> Iterable[str]:
    """Names and ids in a pair's specification."""
    return filter(None, (spec.name, spec.organism, spec.variant, *_strings(spec.model_dump(mode="json"))))


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


def _pattern(texts: Iterable[str]) -> re.Pattern[str]:
    alternatives = "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True))
    return re.compile(rf"(?<![A-Za-z0-9])(?:{alternatives})(?![A-Za-z0-9])", re.IGNORECASE)
