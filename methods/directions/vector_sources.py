"""The direction that a source means: a vector of a finished run, a token's embedding row, or a difference of mean
activations between texts; and Gaussian ones, for controls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffing_mcp.core.errors import InvalidInput, NotTheSame
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.core.settings import settings
from diffing_mcp.methods.directions.vectors import (
    ContrastSource,
    ResidualVector,
    TokenSource,
    VectorHandle,
    VectorSource,
    split_handle,
)
from diffing_mcp.methods.registry import get_method
from diffing_mcp.model_pairs.fingerprint import pair_identity
from diffing_mcp.model_pairs.layers import resolve_layer
from diffing_mcp.model_pairs.padding import padded
from diffing_mcp.model_pairs.pair import LoadedPair
from diffing_mcp.model_pairs.specs import Side
from diffing_mcp.preprocessing.corpora import CorpusParams, load_corpus
from diffing_mcp.preprocessing.corpus_pass import plan_batches
from diffing_mcp.preprocessing.tokenize import tokenize

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.files import RunLookup, RunRecord

_NORM_TEXTS = CorpusParams(max_samples=32, max_tokens=30)
_NORM_FROM = 5
"""First position whose norm counts: the first tokens of a text are attention sinks, whose norms are tens of times those
of others.
"""


def resolve(source: VectorSource, pair: LoadedPair, store: RunLookup, progress: Progress = silent) -> ResidualVector:
    """The direction that a source means, for use on this pair.

    Raises:
        UnknownName: no such run, or no such vector in it.
        InvalidInput: a layer out of range, a text that is not one token, or a method whose runs give no vectors.
        NotTheSame: the vector comes from a model of another width or with fewer layers.
    """
    if isinstance(source, VectorHandle):
        record, vector = stored_vector(source, store)
        if vector.values.shape != (pair.d_model,) or vector.layer >= pair.num_layers:
            raise NotTheSame(
                f"{source} is a direction of {vector.values.shape[-1]} dimensions at layer {vector.layer}; this pair "
                f"has {pair.d_model} dimensions and layers 0 to {pair.num_layers - 1}. Name a vector of a run on this "
                "pair."
            )
        foreign = record.manifest.pair != pair_identity(pair.spec)
        return replace(vector, note="the vector comes from a run on another pair") if foreign else vector
    return (
        token_vector(source, pair, progress)
        if isinstance(source, TokenSource)
        else contrast_vector(source, pair, progress)
    )


def stored_vector(handle: str, store: RunLookup) -> tuple[RunRecord, ResidualVector]:
    """The run and the vector that `RUN/NAME` names.

    Raises:
        UnknownName: no such run, or no such vector in it.
        InvalidInput: another form, or a method whose runs give no vectors.
    """
    run, name = split_handle(handle)
    record = store.get(run)
    return record, get_method(record.manifest.method).vector(record, name)


def token_vector(source: TokenSource, pair: LoadedPair, progress: Progress = silent) -> ResidualVector:
    """The embedding row of one token; strength 1 is the typical norm of activations at the layer.

    Raises:
        InvalidInput: the text is not one token.
    """
    ids = pair.tokenizer(source.token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        pieces = ", ".join(repr(pair.tokenizer.decode([index])) for index in ids)
        raise InvalidInput(
            f"{source.token!r} is not one token of this model but {len(ids)}: {pieces}. Name one token, with its "
            "leading space."
        )
    layer = resolve_layer(source.layer, pair.num_layers).absolute
    values = pair.token_rows(source.side, ids, source.embedding)[0].numpy()
    kind = "unembedding" if source.embedding == "output" else "input embedding"
    return ResidualVector(
        values,
        layer,
        typical_norm(pair, source.side, layer, progress),
        f"{kind} of {source.token!r} in the {source.side} model",
    )


def contrast_vector(source: ContrastSource, pair: LoadedPair, progress: Progress = silent) -> ResidualVector:
    """Mean activation on the positive texts minus that on the negative ones, every text weighing the same."""
    layer = resolve_layer(source.layer, pair.num_layers).absolute
    means = [
        _text_means(pair, source.side, layer, texts, source.average, progress).mean(dim=0)
        for texts in (source.positive, source.negative)
    ]
    label = (
        f"mean activation on {len(source.positive)} texts minus that on {len(source.negative)} ({source.average}, "
        f"{source.side} model)"
    )
    return ResidualVector(
        (means[0] - means[1]).float().numpy(), layer, typical_norm(pair, source.side, layer, progress), label
    )


def gaussian_directions(count: int, d_model: int, seed: int) -> Tensor:
    """Gaussian directions of length 1 [count, d_model]: what chance gives, for controls and nulls."""
    directions = torch.randn(count, d_model, generator=torch.Generator().manual_seed(seed))
    return directions / directions.norm(dim=1, keepdim=True)


def typical_norm(pair: LoadedPair, side: Side, layer: int, progress: Progress = silent) -> float:
    """Mean L2 norm of this side's activations after `layer` on bundled unrelated texts, sinks left out."""
    return typical_norms(pair, side, [layer], progress)[layer]


def typical_norms(pair: LoadedPair, side: Side, layers: Sequence[int], progress: Progress = silent) -> dict[int, float]:
    """Mean L2 norm of this side's activations after each layer, from one pass over bundled texts, sinks left out."""
    corpus = tokenize(load_corpus(_NORM_TEXTS), pair, _NORM_TEXTS)
    hidden = _hidden(pair, side, layers, corpus.ids, progress)
    return {
        layer: float(
            torch.cat(
                [
                    rows[start + _NORM_FROM :].norm(dim=-1)
                    for start, rows in zip(corpus.content_start, several, strict=True)
                ]
            ).mean()
        )
        for layer, several in hidden.items()
    }


def _text_means(
    pair: LoadedPair, side: Side, layer: int, texts: Sequence[str], average: str, progress: Progress
) -> Tensor:
    """[texts, d_model] float64."""
    ids = [list(pair.tokenizer(text)["input_ids"])[: pair.context_length] for text in texts]
    if empty := [index for index, each in enumerate(ids) if not each]:
        raise InvalidInput(f"Text {empty[0]} of the contrast is empty.")
    rows = _hidden(pair, side, [layer], ids, progress)[layer]
    return torch.stack(
        [each[-1] if average == "last_token" or len(each) == 1 else each[1:].mean(dim=0) for each in rows]
    )


def _hidden(
    pair: LoadedPair, side: Side, layers: Sequence[int], ids: Sequence[Sequence[int]], progress: Progress
) -> dict[int, list[Tensor]]:
    """Layer -> residual stream after it of each text, [tokens, d_model] float64 on the CPU."""
    result = {layer: [torch.empty(0)] * len(ids) for layer in layers}
    with pair.side_loaded(side):
        for done, batch in enumerate(plan_batches([len(each) for each in ids], settings().batch_tokens)):
            progress(done, None, "reading activations")
            input_ids, mask = padded([ids[index] for index in batch], pair.tokenizer.pad_token_id)
            output = pair.forward(side, input_ids, mask, layers=list(layers), logits=False)
            for layer, hidden in output.hidden.items():
                for row, index in enumerate(batch):
                    result[layer][index] = hidden[row, : len(ids[index])].to("cpu", torch.float64)
    return result
