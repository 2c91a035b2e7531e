"""From a loaded pair to the stored run of an SAE on differences and its result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diffing_mcp.methods.dictionaries.preparation import is_identical, open_reader, prepare
from diffing_mcp.methods.dictionaries.reading import read_latents
from diffing_mcp.methods.dictionaries.summary import (
    common_words,
    finetuned_norm,
    latent_row,
    latents_to_read,
    training_note,
)
from diffing_mcp.methods.dictionaries.training import differences
from diffing_mcp.methods.sae_difference.analysis import analyse
from diffing_mcp.methods.sae_difference.declaration import SAEDifferenceParams, SAEDifferenceResult
from diffing_mcp.methods.sae_difference.judgement import judge

if TYPE_CHECKING:
    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair


def compare(pair: LoadedPair, params: SAEDifferenceParams, run: RunWriter, progress: Progress) -> SAEDifferenceResult:
    """Collect, train or load, analyse, read, and store."""
    reader = open_reader(pair, params, progress)
    if is_identical(reader):
        return SAEDifferenceResult(
            stands_out=False, headline="Every activation is the same in both models: no difference.", identical=True
        )
    prepared = prepare(pair, params, "sae", differences, reader, run, progress)
    analysis = analyse(prepared, progress)
    columns = analysis.columns
    chosen = latents_to_read(params, columns, analysis.order)
    run.add_table("latents", columns)
    directions = prepared.dictionary.decoder.cpu() / prepared.dictionary.normalisation.scale
    run.add_array("decoder", directions)
    run.add_array("layer", np.asarray([reader.layer]))
    # What all differences have in common: it is no latent, and often the largest part.
    mean = prepared.dictionary.normalisation.mean
    run.add_array("mean_difference", mean)
    readings, examples = read_latents(pair, prepared, chosen, directions, finetuned_norm(reader), run, progress)
    words = common_words([reading.words for reading in readings.values()])
    stands_out, headline = judge(list(readings.values()), words)
    return SAEDifferenceResult(
        stands_out=stands_out,
        headline=headline,
        identical=False,
        training=training_note(prepared, analysis.explained, int(np.sum(columns["max_activation"] == 0))),
        mean_share=_mean_share(
            mean.double().numpy(), analysis.explained.variance[0] / prepared.dictionary.normalisation.scale**2
        ),
        words=words,
        latents=[latent_row(columns, latent, readings, examples) for latent in list(readings)[: params.top_latents]],
    )


def _mean_share(mean: np.ndarray, variance: float) -> float:
    energy = float(mean @ mean)
    return energy / (energy + variance)
