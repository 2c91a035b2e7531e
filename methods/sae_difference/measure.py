"""From a loaded pair to the run of an SAE on differences: every latent in numbers, and when that stands out.

Two models that differ at random still have differences, and an SAE finds latents in them. Null: the opposite ends of
the same directions. A direction that means nothing is as likely as its negative, so its lens shows strong content words
at either end with equal chance, while what was taught is added. More latents with strong words at the end that is
added, by an exact sign test over the latents that are read (those with words at one end alone count), is what stands
out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.methods.dictionaries.evaluation import (
    ExplainedVarianceSums,
    LatentCounts,
    LatentTable,
    measured,
)
from diffing_mcp.methods.dictionaries.latent_scaling import BASE, FINETUNED, ActivationScalingSums
from diffing_mcp.methods.dictionaries.preparation import Prepared, is_identical, open_reader, prepare
from diffing_mcp.methods.dictionaries.reading import (
    LatentReading,
    common_words,
    latent_rows,
    read_latents,
    training_note,
)
from diffing_mcp.methods.dictionaries.schema import LatentWord, SAEDifferenceParams, SAEDifferenceResult, latent_name
from diffing_mcp.methods.dictionaries.training import differences

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair


CHANCE = 0.05
"""Highest probability under the null at which something stands out."""
NEEDED_WORDS = 3
"""Different strong words."""


def analyse(prepared: Prepared, progress: Progress = silent) -> LatentTable:
    """Every latent in numbers, ordered by `share`, dead ones last. One pass over all tokens, of which the held-out ones
    also judge.
    """
    dictionary, reader = prepared.dictionary, prepared.reader
    counts = LatentCounts.empty(dictionary.num_latents)
    explained, scaling = ExplainedVarianceSums(dictionary), ActivationScalingSums(dictionary)
    for start, stop, judged in ((0, prepared.train_stop, False), (prepared.train_stop, reader.num_tokens, True)):
        for block, rows, activations in prepared.encoded(start, stop):
            counts.update(activations)
            if judged:
                explained.update(rows, activations)
                scaling.update(block.base, block.finetuned, activations)
            progress(counts.tokens, reader.num_tokens, "latent table")
    result, beta = explained.result(), scaling.result().numpy()
    norms = dictionary.decoder.norm(dim=1).cpu().double().numpy()
    largest = counts.largest.numpy()
    share = counts.squares.numpy() / counts.tokens * norms**2 / result.variance[0]
    order = np.lexsort((np.arange(len(share)), -share))
    columns: dict[str, Any] = {
        "latent": np.arange(len(share)),
        "frequency": counts.frequency.numpy(),
        "max_activation": largest,
        "strength": largest * norms / dictionary.normalisation.scale,
        "share": measured(share),
        "decoder_norm": norms,
        "beta_base": measured(beta[BASE]),
        "beta_finetuned": measured(beta[FINETUNED]),
        "rank": np.argsort(order),
        "vector": [latent_name(row) for row in range(len(share))],
    }
    return LatentTable(columns, order, result)


def judge(readings: Sequence[LatentReading], words: Sequence[LatentWord]) -> tuple[bool, str]:
    """Whether it stands out, and the outcome in one sentence."""
    added = sum(bool(each.words) and not each.opposite for each in readings)
    taken = sum(bool(each.opposite) and not each.words for each in readings)
    chance = float(stats.binomtest(added, added + taken, 0.5, alternative="greater").pvalue) if added + taken else 1.0
    counts = (
        f"of {len(readings)} latents read, {added} add strong words alone and {taken} take strong words away alone "
        f"(chance {chance:.2g})"
    )
    if chance <= CHANCE and len(words) >= NEEDED_WORDS:
        return True, f"Latents of the difference promote {', '.join(row.word for row in words[:6])}: {counts}."
    return (
        False,
        (
            f"No words stand out of the latents of the difference: {counts}. Look at what the first latents fire on "
            "all the same."
        ),
    )


def compare(pair: LoadedPair, params: SAEDifferenceParams, run: RunWriter, progress: Progress) -> SAEDifferenceResult:
    """Collect, train or load, analyse, read, and store."""
    reader = open_reader(pair, params, progress)
    if is_identical(reader):
        return SAEDifferenceResult(
            stands_out=False, headline="Every activation is the same in both models: no difference.", identical=True
        )
    prepared = prepare(pair, params, "sae", differences, reader, run, progress)
    table = analyse(prepared, progress)
    # What all differences have in common: it is no latent, and often the largest part.
    mean, scale = prepared.dictionary.normalisation.mean, prepared.dictionary.normalisation.scale
    run.add_array("mean_difference", mean)
    directions = prepared.dictionary.decoder.cpu() / scale
    readings, examples = read_latents(pair, params, prepared, table, directions, run, progress)
    words = common_words([reading.words for reading in readings.values()])
    stands_out, headline = judge(list(readings.values()), words)
    return SAEDifferenceResult(
        stands_out=stands_out,
        headline=headline,
        identical=False,
        training=training_note(prepared, table.explained, int(np.sum(table.columns["max_activation"] == 0))),
        mean_share=_mean_share(mean.double().numpy(), table.explained.variance[0] / scale**2),
        words=words,
        latents=latent_rows(params, table.columns, readings, examples),
    )


def _mean_share(mean: np.ndarray, variance: float) -> float:
    energy = float(mean @ mean)
    return energy / (energy + variance)
