"""What the holder of an investigation's token must not read: names, variants, ids, adapters and paths of the pair.

Results are built without them in the first place. This module is the second lock: it removes them from every text that
may come from elsewhere (errors, progress messages, headlines). In results only unmistakable strings are removed (paths,
full pair names, adapter ids): an organism may be called by an ordinary word, and taking that word out of a model's own
answers would change the evidence and give it away.

An answer may also repeat what the holder of the token wrote. So all pairs of the catalogue are removed alike: were only
its own, whoever writes down the names of the catalogue would see which of them is replaced. Of a pair that is in no
catalogue nobody knows what else could be guessed: what its investigation has written itself comes back as it was
written, be it right or wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from diffing_mcp.core.errors import DiffingError
from diffing_mcp.core.paths import IMPORT_FOLDER
from diffing_mcp.core.settings import settings
from diffing_mcp.mcp_server.investigations import Investigation, written
from diffing_mcp.model_pairs.specs import PairSpec


class Redactor:
    """Removes what identifies pairs from texts and replaces it by `label`.

    Args:
        pairs: how each was asked for -> what it is.
        label: what stands in place of it.
        others: what identifies other pairs, removed as well.
        words: words that the tools themselves use. They name no pair to their reader, and an argument whose name
            changes with the pair would.
        said: what the reader has written; called when something of that could be in an answer.
    """

    def __init__(
        self,
        pairs: Mapping[str, PairSpec],
        label: str,
        others: Collection[str] = (),
        words: Collection[str] = (),
        said: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self.label = label
        self._said = said
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
        # Guesses at these alone tell something: the others are taken out of the answers of every investigation.
        self._guessed = {text.lower() for text in plain | parts} - {text.lower() for text in others}

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
        present = [
            secret for secret in present if secret not in self._guessed or _as_words(secret) not in self._written
        ]
        return _pattern(present).sub(lambda found: self.label, text) if present else text

    @cached_property
    def _written(self) -> str:
        """All that the reader has written, as words."""
        return _as_words(" ".join(self._said()))


def redactor_of(investigation: Investigation, words: Collection[str] = (), given: Any = None) -> Redactor:
    """What hides this investigation's pair behind its label. `words`: see `Redactor`; `given`: what is asked in the
    call under way, which is not recorded yet.

    Raises:
        DiffingError: the pair can no longer be resolved.
    """
    from diffing_mcp.model_pairs.resolve import resolve_pair

    names = filter(None, (investigation.pair, investigation.methods_pair))
    pairs = {name: resolve_pair(name) for name in names}

    def said() -> Iterator[str]:
        for each in (given, *written(investigation.id)):
            yield from _strings(each, keys=True)

    return Redactor(pairs, investigation.label, _of_catalogue(tuple(settings().catalogue_folders)), words, said)


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
    named = [text for text in _strings(spec.model_dump(mode="json")) if len(text) <= 500]  # no chat templates
    return filter(None, (spec.name, spec.organism, spec.variant, *named))


def _strings(value: Any, keys: bool = False) -> Iterable[str]:
    """All texts in a JSON value, with the names of its fields where `keys`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        if keys:
            yield from map(str, value)
        for item in value.values():
            yield from _strings(item, keys)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item, keys)


def _as_words(text: str) -> str:
    """Letters and digits of a text, a space around each stretch of them: answers repeat names with other marks."""
    return f" {' '.join(re.findall('[a-z0-9]+', text.lower()))} "


def _pattern(texts: Iterable[str]) -> re.Pattern[str]:
    alternatives = "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True))
    return re.compile(rf"(?<![A-Za-z0-9])(?:{alternatives})(?![A-Za-z0-9])", re.IGNORECASE)
