"""From a loaded pair to the stored run of a crosscoder and its result."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from diffing_mcp.methods.crosscoder.analysis import CrosscoderAnalysis, analyse
from diffing_mcp.methods.crosscoder.declaration import CrosscoderParams, CrosscoderResult
from diffing_mcp.methods.crosscoder.judgement import headline
from diffing_mcp.methods.dictionaries.latent_scaling import FINETUNED
from diffing_mcp.methods.dictionaries.preparation import Prepared, is_identical, open_reader, prepare
from diffing_mcp.methods.dictionaries.reading import LatentReading, read_latents
from diffing_mcp.methods.dictionaries.rows import Example
from diffing_mcp.methods.dictionaries.summary import (
    common_words,
    finetuned_norm,
    latent_row,
    latents_to_read,
    training_note,
)
from diffing_mcp.methods.dictionaries.training import both_sides

if TYPE_CHECKING:
    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair


def compare(pair: LoadedPair, params: CrosscoderParams, run: RunWriter, progress: Progress) -> CrosscoderResult:
    """Collect, train or load, analyse, read, and store."""
    reader = open_reader(pair, params, progress)
    if is_identical(reader):
        return CrosscoderResult(
            stands_out=False,
            headline="Every activation is the same in both models: no latent can be either's own.",
            identical=True,
        )
    extra = {"dedicated": params.dedicated, "l1_weight": params.l1_weight if params.sparsity == "l1" else 0.0}
    prepared = prepare(pair, params, params.sparsity, both_sides, reader, run, progress, **extra)
    analysis = analyse(prepared, progress)
    chosen = latents_to_read(params, analysis.columns, analysis.order)
    run.add_table("latents", analysis.columns)
    directions = prepared.dictionary.decoder_of(FINETUNED).cpu() / prepared.dictionary.normalisation.scale
    run.add_array("decoder", directions)
    run.add_array("layer", np.asarray([reader.layer]))
    readings, examples = read_latents(pair, prepared, chosen, directions, finetuned_norm(reader), run, progress)
    return _result(params, prepared, analysis, readings, examples)


def _result(
    params: CrosscoderParams,
    prepared: Prepared,
    analysis: CrosscoderAnalysis,
    readings: dict[int, LatentReading],
    examples: dict[int, list[Example]],
) -> CrosscoderResult:
    columns = analysis.columns
    own = [latent for latent in readings if columns["owner"][latent] == "finetuned"]
    finetuned, base = analysis.owned("finetuned"), analysis.owned("base")
    stands_out, sentence = headline(finetuned, base, (readings[latent].words for latent in own))
    tags = Counter(columns["tag"])
    dead = tags.pop("dead", 0)
    return CrosscoderResult(
        stands_out=stands_out,
        headline=sentence,
        identical=False,
        training=training_note(prepared, analysis.explained, dead),
        tags=dict(tags),
        owned_by_finetuned=finetuned,
        owned_by_base=base,
        words=common_words([readings[latent].words for latent in own]),
        latents=[latent_row(columns, latent, readings, examples) for latent in list(readings)[: params.top_latents]],
    )
