"""From a loaded pair to the stored run of a crosscoder and its result."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from methods.crosscoder.analysis import CrosscoderAnalysis, analyse
from methods.crosscoder.declaration import CrosscoderParams, CrosscoderResult, LatentWord
from methods.crosscoder.judgement import headline
from methods.dictionaries.latent_scaling import FINETUNED
from methods.dictionaries.preparation import Prepared, is_identical, open_reader, prepare
from methods.dictionaries.reading import READ_LATENTS, LatentReading, read_latents
from methods.dictionaries.rows import Example, LatentRow, TrainingNote
from methods.dictionaries.training import both_sides

if TYPE_CHECKING:
    from methods.contract import RunWriter
    from model_pairs.pair import LoadedPair
    from organisms.progress import Progress
    from preprocessing.activations import PairedActivations

_WORDS = 10


def compare(pair: LoadedPair, params: CrosscoderParams, run: RunWriter, progress: Progress) -> CrosscoderResult:
    """Collect, train or load, analyse, read, and store."""
    reader = open_reader(pair, params, progress)
    if is_identical(reader):
        return CrosscoderResult(
            stands_out=False, headline="Every activation is the same in both models: no latent can be either's own.", identical=True
        )
    extra = {"dedicated": params.dedicated, "l1_weight": params.l1_weight if params.sparsity == "l1" else 0.0}
    prepared = prepare(pair, params, params.sparsity, both_sides, reader, run, progress, **extra)
    analysis = analyse(prepared, progress)
    run.add_table("latents", analysis.columns)
    directions = prepared.dictionary.decoder_of(FINETUNED).cpu() / prepared.dictionary.normalisation.scale
    run.add_array("decoder", directions)
    run.add_array("layer", np.asarray([reader.layer]))
    alive = [int(latent) for latent in analysis.order if analysis.columns["max_activation"][latent]]
    readings, examples = read_latents(pair, prepared, alive[:READ_LATENTS], directions, finetuned_norm(reader), run, progress)
    return _result(params, prepared, analysis, readings, examples)


def finetuned_norm(reader: PairedActivations) -> float:
    """Mean L2 norm of finetuned activations, over the first tokens of the corpus."""
    block = next(iter(reader.blocks(4096)))
    return float(block.finetuned.double().norm(dim=1).mean())


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
        training=training_note(prepared, analysis.explained.by_source, analysis, dead),
        tags=dict(tags),
        owned_by_finetuned=finetuned,
        owned_by_base=base,
        words=_words([readings[latent].words for latent in own]),
        latents=[_row(columns, latent, readings, examples) for latent in list(readings)[: params.top_latents]],
    )


def training_note(prepared: Prepared, by_side: list[float] | None, analysis: CrosscoderAnalysis, dead: int) -> TrainingNote:
    """How good the dictionary is."""
    return TrainingNote(
        layer=prepared.reader.layer,
        latents=prepared.dictionary.num_latents,
        tokens=prepared.reader.num_tokens,
        steps=prepared.training.steps if prepared.training else None,
        stopped_early=bool(prepared.training and prepared.training.stopped_early),
        variance_explained=analysis.explained.total,
        variance_explained_by_side=by_side,
        active=analysis.explained.active,
        dead_share=dead / prepared.dictionary.num_latents,
    )


def _words(several: list[dict[str, float]]) -> list[LatentWord]:
    best: dict[str, tuple[float, int]] = {}
    for words in several:
        for word, z in words.items():
            highest, latents = best.get(word, (0.0, 0))
            best[word] = (max(highest, z), latents + 1)
    ranked = sorted(best.items(), key=lambda item: (-item[1][1], -item[1][0], item[0]))
    return [LatentWord(word=word, z=round(z, 3), latents=latents) for word, (z, latents) in ranked[:_WORDS]]


def _row(columns: dict[str, list[object]], latent: int, readings: dict[int, LatentReading], examples: dict[int, list[Example]]) -> LatentRow:
    values = {name: columns[name][latent] for name in LatentRow.model_fields if name in columns}
    reading = readings[latent]
    return LatentRow(**values | {"tokens": reading.tokens, "words": list(reading.words), "examples": examples.get(latent, [])[:1]})
