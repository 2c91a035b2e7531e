"""Where chosen latents fire: the strongest places of each quantile bin, one a document, put into the run's store of
examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffing_mcp.methods.dictionaries.models import SparseDictionary
from diffing_mcp.methods.dictionaries.rows import Example, latent_name, shown_example
from diffing_mcp.methods.dictionaries.training import RowsOf
from diffing_mcp.methods.examples.top import TopExamples
from diffing_mcp.methods.examples.writer import activation_contexts, examples_of
from diffing_mcp.preprocessing.activations import PairedActivations

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import RunWriter

PER_BIN = 5
QUANTILES = (0.25, 0.5, 0.75, 0.95)
"""Inner edges of the bins, as shares of a latent's largest activation."""
MAX_TOKENS = 1_000_000
"""Tokens looked at, at most."""
_ROWS = 4096


@dataclass(frozen=True)
class _Firings:
    """Every firing of the chosen latents [N], ordered by latent and token.
    `latents` are indices among the chosen ones.
    """

    latents: np.ndarray
    samples: np.ndarray
    places: np.ndarray
    values: np.ndarray


def write_examples(
    reader: PairedActivations,
    rows_of: RowsOf,
    dictionary: SparseDictionary,
    latents: Sequence[int],
    tokenizer: Any,
    run: RunWriter,
) -> dict[int, list[Example]]:
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
    shown: dict[int, list[Example]] = {}
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
