"""Activations for methods that learn from them: from a stored collection, or straight from the corpus pass with nothing
written. Torch-free.

A method's parameters subclass `ActivationSourceParams`; its run calls `activations_of`, its key holds
`diffing_mcp.preprocessing.text_sources.source_identity`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field

from diffing_mcp.core.errors import InvalidInput, OutOfRoom
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.model_pairs.fingerprint import pair_identity
from diffing_mcp.preprocessing.corpora import CorpusParams, load_corpus
from diffing_mcp.preprocessing.precision import model_dtype
from diffing_mcp.preprocessing.text_sources import StoredActivationsParams, corpus_part

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.activation_rows import KeptText
    from diffing_mcp.preprocessing.activations import PairedActivations

MEMORY_SHARE = 0.5
"""Share of the free memory that collected rows may take."""


class ActivationTextParams(CorpusParams):
    """Which tokens' activations are wanted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    skip_first: int = Field(
        1,
        ge=0,
        le=1024,
        description=(
            "Tokens dropped at the start of each document: without a BOS the first is an attention sink. A BOS is "
            "never compared. In a whole chat a BOS counts as one of them; before an answer nothing is dropped."
        ),
    )
    chat_part: Literal["answer", "whole"] = Field(
        "answer",
        description=(
            "What is kept of a chat: its first answer with the 3 tokens before it, or the whole chat, all turns and "
            "template tokens (max_tokens then counts from its start)."
        ),
    )
    max_activation_tokens: int | None = Field(None, ge=1, le=10**10, description="Tokens kept in all at most.")


class ActivationSourceParams(StoredActivationsParams, ActivationTextParams):
    """Where a method's activations come from. With `activations` the corpus fields, `skip_first` and `chat_part` are
    those of the collection.
    """


def read_text(pair: LoadedPair, params: ActivationTextParams) -> KeptText:
    """The tokens that the parameters choose."""
    from diffing_mcp.preprocessing.activation_rows import kept_text
    from diffing_mcp.preprocessing.tokenize import tokenize

    corpus = corpus_part(params)
    tokens = tokenize(load_corpus(corpus), pair, corpus, params.chat_part)
    return kept_text(tokens, tokens.skipped(params.skip_first), params.max_activation_tokens)


def activations_of(
    pair: LoadedPair, params: ActivationSourceParams, layers: Sequence[int], progress: Progress = silent
) -> dict[int, PairedActivations]:
    """Readers of both sides' residual stream after each of `layers` (absolute).

    From the corpus pass the rows lie in memory in the models' own dtype, and the forward stops at the last of the
    layers.

    Raises:
        UnknownName, InvalidInput: no such collection, one of another pair or without one of the layers, several that do
            not fit together, or no tokens.
        OutOfRoom: the rows do not fit into memory; the message says how to store them instead.
        Cancelled: from `progress`.
    """
    wanted = sorted(set(layers))
    if params.collections:
        from diffing_mcp.preprocessing.activation_mixture import open_collections
        from diffing_mcp.preprocessing.activation_store import default_activation_store

        return {
            **open_collections(
                default_activation_store(), params.collections, pair.spec, wanted, params.max_activation_tokens
            )
        }
    return _collected(pair, params, wanted, progress)


def _collected(
    pair: LoadedPair, params: ActivationSourceParams, layers: list[int], progress: Progress
) -> dict[int, PairedActivations]:
    import hashlib

    from diffing_mcp.model_pairs.layers import resolve_layers
    from diffing_mcp.preprocessing.activation_rows import ActivationRows, MemoryRows, RowCollector, default_pool_rows
    from diffing_mcp.preprocessing.corpus_pass import run_corpus_pass

    if not layers:
        raise InvalidInput("Activations are wanted of at least one layer.")
    resolve_layers(layers, pair.num_layers)
    text = read_text(pair, params)
    dtype = model_dtype(pair)
    _check_memory(2 * len(layers) * text.num_tokens * pair.d_model * dtype.itemsize, text.num_tokens)
    rows = MemoryRows(text.num_tokens, pair.d_model, layers, dtype)
    run_corpus_pass(pair, text.corpus, [RowCollector(text, layers, dtype, rows)], progress)
    readers: dict[int, PairedActivations] = {}
    for layer in layers:
        decided = [pair_identity(pair.spec), text.corpus.sha, text.skip_first, text.num_tokens, layer, str(dtype)]
        digest = hashlib.sha256(repr(decided).encode()).hexdigest()
        readers[layer] = ActivationRows(
            layer=layer,
            d_model=pair.d_model,
            num_tokens=text.num_tokens,
            content_hash=digest,
            starts=text.starts,
            token_ids=text.token_ids,
            first_position=text.skip_first,
            source=rows.source(layer),
            pool_rows=default_pool_rows(pair.d_model, dtype),
        )
    return readers


def _check_memory(needed: int, tokens: int) -> None:
    import psutil

    room = int(MEMORY_SHARE * psutil.virtual_memory().available)
    if needed > room:
        raise OutOfRoom(
            f"The activations of {tokens} tokens take {needed / 2**20:.0f} MiB and {room / 2**20:.0f} MiB of memory "
            "may be used. Lower max_samples, max_tokens or max_activation_tokens, ask for fewer layers, or store them "
            "(collect_activations, or `diffing activations collect`) and pass the id as `activations`."
        )
