"""Which text a method reads: a corpus that both models read now, or stored collections of the activations that they had
when they read one. Torch-free.

Both are read through one interface, `TextReading`: a method that accumulates over a corpus pass and needs hidden states
alone reads either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.preprocessing.corpora import CorpusParams, corpus_identity, load_corpus

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.batches import Accumulator
    from diffing_mcp.preprocessing.corpus_pass import PassStatistics
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus


class StoredActivationsParams(BaseModel):
    """The choice of stored collections in place of a corpus. What chooses and cuts the text is then theirs, and fields
    that say it count for nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    activations: str | None = Field(
        None,
        max_length=1000,
        description=(
            "Id of a stored collection (collect_activations) to read instead of the corpus; several, separated by "
            "commas, are mixed by size."
        ),
    )

    @property
    def collections(self) -> tuple[str, ...]:
        """The ids in `activations`; none: the corpus is read."""
        return tuple(part.strip() for part in (self.activations or "").split(",") if part.strip())


@dataclass(frozen=True)
class StoredText:
    """The tokens of stored collections, one at least, by id."""

    collections: tuple[str, ...]


TextSource = CorpusParams | StoredText


def corpus_part(params: CorpusParams) -> CorpusParams:
    """The corpus fields alone."""
    return CorpusParams(**{name: getattr(params, name) for name in CorpusParams.model_fields})


def text_source(params: CorpusParams) -> TextSource:
    """What the parameters choose; equal (and hashable) for parameters that choose the same."""
    collections = params.collections if isinstance(params, StoredActivationsParams) else ()
    return StoredText(collections) if collections else corpus_part(params)


def source_identity(params: CorpusParams) -> dict[str, Any]:
    """What decides the text besides the parameters and the pair, for `key_parts`: the content hash of the collections
    or of the corpus.

    Loads no model.

    Raises:
        UnknownName, InvalidInput: no such collection or corpus.
    """
    source = text_source(params)
    if not isinstance(source, StoredText):
        return {"corpus": corpus_identity(source)}
    from diffing_mcp.preprocessing.activation_store import default_activation_store

    found = [default_activation_store().finished(identifier) for identifier in source.collections]
    parts = [{"id": index.id, "content_hash": index.content_hash} for index in found]
    return {"activations": parts[0] if len(parts) == 1 else parts}


def text_tokens(params: CorpusParams) -> tuple[int, int]:
    """Tokens that either model reads (none where they are stored), and tokens of the text, at most, for estimates.

    Raises:
        UnknownName, InvalidInput: no such stored collection.
    """
    source = text_source(params)
    if not isinstance(source, StoredText):
        return source.max_samples * source.max_tokens, source.max_samples * source.max_tokens
    from diffing_mcp.preprocessing.activation_store import default_activation_store

    return 0, sum(default_activation_store().finished(identifier).tokens for identifier in source.collections)


class TextReading(Protocol):
    """A text that is ready to be read."""

    @property
    def corpus(self) -> TokenizedCorpus:
        """Its tokens."""

    def feed(self, accumulators: Sequence[Accumulator], progress: Progress = silent) -> PassStatistics:
        """Give every accumulator the whole text once.

        Raises:
            Cancelled: from `progress`, between batches.
            InvalidInput: stored activations lack a layer.
        """


def open_text(pair: LoadedPair, source: TextSource) -> TextReading:
    """The text of a source, tokenised.

    Raises:
        UnknownName, InvalidInput: no such collection or corpus, one that this pair cannot read, collections that do not
            fit together.
    """
    if isinstance(source, StoredText):
        from diffing_mcp.preprocessing.activation_replay import open_replay

        return open_replay(pair, source.collections)
    from diffing_mcp.preprocessing.tokenize import tokenize

    return _CorpusReading(pair, tokenize(load_corpus(source), pair, source))


@dataclass(frozen=True)
class _CorpusReading:
    pair: LoadedPair
    corpus: TokenizedCorpus

    def feed(self, accumulators: Sequence[Accumulator], progress: Progress = silent) -> PassStatistics:
        from diffing_mcp.preprocessing.corpus_pass import run_corpus_pass

        return run_corpus_pass(self.pair, self.corpus, accumulators, progress)
