"""Where chosen latents fire: the strongest places and some of each quantile, one a document, as columns of a table."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from methods.dictionaries.models import SparseDictionary
from methods.dictionaries.training import RowsOf
from methods.words import token_texts
from preprocessing.activations import PairedActivations

TOP = 5
PER_QUANTILE = 2
QUANTILES = (0.25, 0.5, 0.75, 0.95)
BEFORE, AFTER = 16, 8
"""Tokens shown around the strongest one."""
MAX_TOKENS = 1_000_000
"""Tokens looked at, at most."""
_ROWS = 4096


@dataclass(frozen=True)
class _Firing:
    """Every firing of one latent, by token."""

    tokens: np.ndarray
    values: np.ndarray


def example_columns(
    reader: PairedActivations, rows_of: RowsOf, dictionary: SparseDictionary, latents: Sequence[int], tokenizer: Any, seed: int = 0
) -> dict[str, list[Any]]:
    """Columns `latent`, `quantile`, `activation`, `sample`, `position` (content token of the sample), `mark` (index within `tokens`), `tokens` and
    `activations` (a token each)."""
    columns: dict[str, list[Any]] = {name: [] for name in ("latent", "quantile", "activation", "sample", "position", "mark", "tokens", "activations")}
    chooser = random.Random(seed)
    for latent, firing in zip(latents, _firings(reader, rows_of, dictionary, latents), strict=True):
        if not len(firing.tokens):
            continue
        samples, places = (found.numpy() for found in reader.locate(torch.from_numpy(firing.tokens)))
        for index, quantile in _chosen(firing, samples, chooser):
            sample, place = int(samples[index]), int(places[index])
            ids = reader.sample_ids(sample)
            first, last = max(0, place - BEFORE), min(len(ids), place + AFTER + 1)
            columns["latent"].append(latent)
            columns["quantile"].append(quantile)
            columns["activation"].append(float(firing.values[index]))
            columns["sample"].append(sample)
            columns["position"].append(place + reader.first_position)
            columns["mark"].append(place - first)
            columns["tokens"].append(token_texts(tokenizer, ids[first:last]))
            columns["activations"].append(_around(firing, int(firing.tokens[index]) - place + first, last - first))
    return columns


def _firings(reader: PairedActivations, rows_of: RowsOf, dictionary: SparseDictionary, latents: Sequence[int]) -> list[_Firing]:
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
    owners, where, strengths = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    order = np.lexsort((where, owners))
    bounds = np.searchsorted(owners[order], np.arange(len(latents) + 1))
    return [_Firing(where[order[first:last]], strengths[order[first:last]]) for first, last in pairwise(bounds)]


def _chosen(firing: _Firing, samples: np.ndarray, chooser: random.Random) -> list[tuple[int, str]]:
    """Indices of the strongest firings and of some in each quantile of the largest one; the strongest of each document alone."""
    order = np.argsort(-firing.values, kind="stable")
    _, first = np.unique(samples[order], return_index=True)
    ranked = order[np.sort(first)]
    result = [(int(index), "top") for index in ranked[:TOP]]
    shares = firing.values[ranked] / firing.values[ranked[0]]
    bounds = (0.0, *QUANTILES, 1.0)
    for low, high in zip(bounds[-2::-1], bounds[:0:-1], strict=True):
        inside = [int(index) for index in ranked[TOP:][(shares[TOP:] > low) & (shares[TOP:] <= high)]]
        result += [(index, f"{low:g}-{high:g}") for index in sorted(chooser.sample(inside, min(PER_QUANTILE, len(inside))))]
    return result


def _around(firing: _Firing, first: int, count: int) -> list[float]:
    wanted = np.arange(first, first + count)
    places = np.searchsorted(firing.tokens, wanted).clip(max=len(firing.tokens) - 1)
    return [round(float(value), 4) for value in np.where(firing.tokens[places] == wanted, firing.values[places], 0.0)]
