"""What chosen latents read as: the logit lens of their decoder vectors, where they fire, and the rows of results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffing_mcp.methods.dictionaries.evaluation import ExplainedVariance, LatentTable
from diffing_mcp.methods.dictionaries.models import SparseDictionary
from diffing_mcp.methods.dictionaries.preparation import Prepared
from diffing_mcp.methods.dictionaries.schema import (
    SHOWN_TOKENS,
    DictionaryParams,
    LatentExample,
    LatentRow,
    LatentWord,
    TrainingNote,
    latent_name,
    shown_example,
)
from diffing_mcp.methods.dictionaries.training import RowsOf
from diffing_mcp.methods.directions.lens import Lens
from diffing_mcp.methods.directions.lens_words import NULL_Z, content_words, strongest
from diffing_mcp.methods.examples.top import TopExamples
from diffing_mcp.methods.examples.writer import activation_contexts, examples_of
from diffing_mcp.methods.texts.words import vocabulary
from diffing_mcp.preprocessing.activations import PairedActivations

if TYPE_CHECKING:
    from torch import Tensor

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair


_DIRECTIONS, _DIRECTION_SEED = 128, 0
_LENS_DEPTH = 20
PER_BIN = 5
QUANTILES = (0.25, 0.5, 0.75, 0.95)
"""Inner edges of the bins, as shares of a latent's largest activation."""
MAX_TOKENS = 1_000_000
"""Tokens looked at, at most."""
_ROWS = 4096
_WORDS = 10
"""Words of a result."""


@dataclass(frozen=True)
class LatentReading:
    """One latent's lens.

    Attributes:
        tokens: the first promoted tokens; words: strong content words (z >= NULL_Z) among them, with their z.
        opposite: the same words for the negative of the direction, which is the null of `words`.
    """

    tokens: list[str]
    words: dict[str, float]
    opposite: dict[str, float]


def read_latents(
    pair: LoadedPair,
    params: DictionaryParams,
    prepared: Prepared,
    table: LatentTable,
    directions: Tensor,
    run: RunWriter,
    progress: Progress,
) -> tuple[dict[int, LatentReading], dict[int, list[LatentExample]]]:
    """Lens and examples of the first latents by rank, in that order. Stores the table of all latents, which learns
    which were read, the directions, the lens (table `lens`) and the examples.

    Args:
        directions: [F, D], decoder vectors to read, in units of the residual stream.
    """
    latents = _latents_to_read(params, table)
    run.add_table("latents", table.columns)
    run.add_array("decoder", directions)
    run.add_array("layer", np.asarray([prepared.reader.layer]))
    words = vocabulary(pair.tokenizer, pair.vocab_size)
    lens = Lens(pair, "finetuned", _finetuned_norm(prepared.reader), _DIRECTIONS, _DIRECTION_SEED)
    readings: dict[int, LatentReading] = {}
    tokens: dict[str, list[Any]] = {name: [] for name in ("latent", "sign", "token", "z", "probability")}
    for number, latent in enumerate(latents):
        progress(number, len(latents), "reading latents through the lens")
        both = lens.read(directions[latent].cpu())
        if both is None:
            continue
        for sign, reading in zip(("promoted", "suppressed"), both, strict=True):
            for token in strongest(reading, words, _LENS_DEPTH):
                for name, value in {"latent": latent, "sign": sign, **token.model_dump()}.items():
                    tokens[name].append(value)
        strong = [{word: z for word, z in content_words(reading, words).items() if z >= NULL_Z} for reading in both]
        readings[latent] = LatentReading([token.token for token in strongest(both[0], words, SHOWN_TOKENS)], *strong)
    run.add_table("lens", tokens)
    return readings, _write_examples(
        prepared.reader, prepared.rows_of, prepared.dictionary, latents, pair.tokenizer, run
    )


@dataclass(frozen=True)
class _Firings:
    """Every firing of the chosen latents [N], ordered by latent and token.
    `latents` are indices among the chosen ones.
    """

    latents: np.ndarray
    samples: np.ndarray
    places: np.ndarray
    values: np.ndarray


def _write_examples(
    reader: PairedActivations,
    rows_of: RowsOf,
    dictionary: SparseDictionary,
    latents: Sequence[int],
    tokenizer: Any,
    run: RunWriter,
) -> dict[int, list[LatentExample]]:
    """Stores the examples of `latents`; gives those of each, strongest first."""
    found = _firings(reader, rows_of, dictionary, latents)
    largest = np.zeros(len(latents))
    np.maximum.at(largest, found.latents, found.values)
    largest[largest == 0] = 1.0
    top = TopExamples(PER_BIN, QUANTILES, largest, least=0.0)
    top.add(found.latents, found.values, found.samples, found.places + reader.first_position)
    bounds = np.searchsorted(found.latents, np.arange(len(latents) + 1))

    def scores(latent: int, sample: int) -> np.ndarray:
        part = slice(bounds[latent], bounds[latent + 1])
        inside = found.samples[part] == sample
        given = np.zeros(len(reader.sample_ids(sample)), dtype=np.float32)
        given[found.places[part][inside]] = found.values[part][inside]
        return given

    made = list(
        examples_of(
            top.found(), lambda latent: latent_name(latents[latent]), activation_contexts(reader, tokenizer), scores
        )
    )
    run.examples(PER_BIN).append(made)
    shown: dict[int, list[LatentExample]] = {}
    by_name = {latent_name(latent): latent for latent in latents}
    for example in sorted(made, key=lambda example: -example.score):
        shown.setdefault(by_name[example.feature], []).append(shown_example(example))
    return shown


def _firings(
    reader: PairedActivations, rows_of: RowsOf, dictionary: SparseDictionary, latents: Sequence[int]
) -> _Firings:
    chosen = torch.as_tensor(latents, device=dictionary.decoder.device)
    part = replace(
        dictionary,
        encoder=dictionary.encoder[:, chosen],
        encoder_bias=dictionary.encoder_bias[chosen],
        decoder=dictionary.decoder[chosen],
        threshold=dictionary.threshold[chosen],
    )
    found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    for block in reader.blocks(_ROWS, stop=min(reader.num_tokens, MAX_TOKENS)):
        activations = part.encode(part.normalisation.apply(rows_of(block).to(part.decoder.device))).cpu()
        rows, columns = activations.nonzero(as_tuple=True)
        found.append((columns, block.tokens[rows], activations[rows, columns]))
    owners, tokens, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    samples, places = reader.locate(tokens)
    order = np.lexsort((tokens.numpy(), owners.numpy()))
    return _Firings(*(column.numpy()[order] for column in (owners, samples, places, values)))


def _finetuned_norm(reader: PairedActivations) -> float:
    """Mean L2 norm of finetuned activations, over the first tokens of the corpus."""
    block = next(iter(reader.blocks(4096)))
    return float(block.finetuned.double().norm(dim=1).mean())


def training_note(prepared: Prepared, explained: ExplainedVariance, dead: int) -> TrainingNote:
    """How good the dictionary is."""
    return TrainingNote(
        layer=prepared.reader.layer,
        latents=prepared.dictionary.num_latents,
        tokens=prepared.reader.num_tokens,
        steps=prepared.training.steps if prepared.training else None,
        stopped_early=bool(prepared.training and prepared.training.stopped_early),
        variance_explained=explained.total,
        variance_explained_by_side=explained.by_source if prepared.dictionary.sources > 1 else None,
        active=explained.active,
        dead_share=dead / prepared.dictionary.num_latents,
    )


def common_words(several: list[dict[str, float]]) -> list[LatentWord]:
    """Words of several latents, those of most latents first."""
    best: dict[str, tuple[float, int]] = {}
    for words in several:
        for word, z in words.items():
            highest, latents = best.get(word, (0.0, 0))
            best[word] = (max(highest, z), latents + 1)
    ranked = sorted(best.items(), key=lambda item: (-item[1][1], -item[1][0], item[0]))
    return [LatentWord(word=word, z=round(z, 3), latents=latents) for word, (z, latents) in ranked[:_WORDS]]


def _latents_to_read(params: DictionaryParams, table: LatentTable) -> list[int]:
    alive = [int(latent) for latent in table.order if table.columns["max_activation"][latent]]
    chosen = alive[: max(params.read_latents, params.top_latents)]
    read = np.zeros(len(table.order), dtype=bool)
    read[chosen] = True
    table.columns["read"] = read
    return chosen


def latent_rows(
    params: DictionaryParams,
    columns: dict[str, Any],
    readings: dict[int, LatentReading],
    examples: dict[int, list[LatentExample]],
) -> list[LatentRow]:
    """The latents of the result, each with its first example."""
    return [
        LatentRow(
            **{name: columns[name][latent] for name in LatentRow.model_fields if name in columns},
            tokens=reading.tokens,
            words=list(reading.words),
            examples=examples.get(latent, [])[:1],
        )
        for latent, reading in list(readings.items())[: params.top_latents]
    ]
