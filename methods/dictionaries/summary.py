"""Parts of the results of both dictionary methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from diffing_mcp.methods.dictionaries.evaluation import ExplainedVariance
from diffing_mcp.methods.dictionaries.params import DictionaryParams
from diffing_mcp.methods.dictionaries.preparation import Prepared
from diffing_mcp.methods.dictionaries.reading import LatentReading
from diffing_mcp.methods.dictionaries.rows import Example, LatentRow, LatentWord, TrainingNote

if TYPE_CHECKING:
    from diffing_mcp.preprocessing.activations import PairedActivations

_WORDS = 10


def finetuned_norm(reader: PairedActivations) -> float:
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


def latents_to_read(params: DictionaryParams, columns: dict[str, Any], order: np.ndarray) -> list[int]:
    """The first by rank of those that fire; `columns` learns which (`read`)."""
    alive = [int(latent) for latent in order if columns["max_activation"][latent]]
    chosen = alive[: max(params.read_latents, params.top_latents)]
    read = np.zeros(len(order), dtype=bool)
    read[chosen] = True
    columns["read"] = read
    return chosen


def latent_row(
    columns: dict[str, Any], latent: int, readings: dict[int, LatentReading], examples: dict[int, list[Example]]
) -> LatentRow:
    """A latent of the result, with its first example."""
    values = {name: columns[name][latent] for name in LatentRow.model_fields if name in columns}
    reading = readings[latent]
    return LatentRow(
        **values | {"tokens": reading.tokens, "words": list(reading.words), "examples": examples.get(latent, [])[:1]}
    )
