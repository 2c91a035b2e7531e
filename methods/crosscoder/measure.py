"""From a loaded pair to the run of a crosscoder: every latent in numbers (decoder norms, latent scaling, whose own it
is), and when that stands out.

Null: the same latent scaling with the models exchanged. Whatever makes a latent look like one model's own without
anything having been taught (weights that moved at random, features that turned, chance) does it for both models alike,
so under the null a latent that is one model's own is either's with probability 1/2. More of the finetuned model's than
of the base's, by an exact sign test, is what stands out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.methods.dictionaries.evaluation import (
    ExplainedVariance,
    ExplainedVarianceSums,
    LatentCounts,
    LatentTable,
    measured,
)
from diffing_mcp.methods.dictionaries.latent_scaling import BASE, FINETUNED, LatentScaling, LatentScalingSums
from diffing_mcp.methods.dictionaries.preparation import Prepared, is_identical, open_reader, prepare
from diffing_mcp.methods.dictionaries.reading import common_words, latent_rows, read_latents, training_note
from diffing_mcp.methods.dictionaries.schema import CrosscoderParams, CrosscoderResult, Owner, latent_name
from diffing_mcp.methods.dictionaries.training import both_sides

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair


LEVEL = 0.05
"""Chance that any latent counts as one model's own although its ratios lie at the limits (Bonferroni over
the latents).
"""
LEAST_DOCUMENTS = 5
"""Held-out documents in which a latent must fire for its ratios to be judged."""
ONLY, SHARED = 0.1, (0.4, 0.6)
"""Relative decoder norms below ONLY and above 1 - ONLY are tagged as one model's, those within SHARED as
both models'.
"""
CHANCE = 0.05
"""Highest probability under the null at which something stands out."""


def analyse(prepared: Prepared, progress: Progress = silent) -> LatentTable:
    """Every latent in numbers, ordered by evidence of being the finetuned model's own, dead ones last.

    One pass over all tokens for frequencies, of which the held-out ones also judge: explained variance and latent
    scaling.
    """
    dictionary, reader = prepared.dictionary, prepared.reader
    counts = LatentCounts.empty(dictionary.num_latents)
    explained, scaling = ExplainedVarianceSums(dictionary), LatentScalingSums(dictionary)
    for _, _, activations in prepared.encoded(0, prepared.train_stop):
        counts.update(activations)
        progress(counts.tokens, reader.num_tokens, "latent table")
    for block, rows, activations in prepared.encoded(prepared.train_stop, reader.num_tokens):
        counts.update(activations)
        explained.update(rows, activations)
        scaling.update(rows, activations, reader.locate(block.tokens)[0])
        progress(counts.tokens, reader.num_tokens, "latent scaling")
    return _assembled(prepared, counts, explained.result(), scaling.result())


def _assembled(
    prepared: Prepared, counts: LatentCounts, explained: ExplainedVariance, scaling: LatentScaling
) -> LatentTable:
    dictionary = prepared.dictionary
    base, finetuned = dictionary.decoder_of(BASE).cpu().double(), dictionary.decoder_of(FINETUNED).cpu().double()
    norms = [vectors.norm(dim=1) for vectors in (base, finetuned)]
    longest = norms[0].maximum(norms[1]).clamp_min(1e-30)
    relative = (0.5 * (1 + (norms[1] - norms[0]) / longest)).numpy()
    cosine = ((base * finetuned).sum(1) / (norms[0] * norms[1]).clamp_min(1e-30)).numpy()
    largest, squares = counts.largest.numpy(), counts.squares.numpy()
    dead = largest == 0
    evidence = scaling.evidence.numpy()
    needed = _needed(scaling.documents.numpy(), len(dead))
    own = evidence > needed
    columns: dict[str, Any] = {
        "latent": np.arange(len(dead)),
        "tag": _tags(relative, dead),
        "owner": [
            "finetuned" if own[FINETUNED, row] else "base" if own[BASE, row] else None for row in range(len(dead))
        ],
        "frequency": counts.frequency.numpy(),
        "max_activation": largest,
        "strength": largest * norms[1].numpy() / dictionary.normalisation.scale,
        "share": squares / counts.tokens * norms[1].square().numpy() / explained.variance[FINETUNED],
        "relative_norm": relative,
        "cosine": cosine,
        "base_norm": norms[0].numpy(),
        "finetuned_norm": norms[1].numpy(),
        "ratio_error": scaling.ratio["error"].numpy(),
        "ratio_reconstruction": scaling.ratio["reconstruction"].numpy(),
        "ratio_activation": scaling.ratio["activation"].numpy(),
        "evidence": evidence[FINETUNED],
        "evidence_base": evidence[BASE],
        "held_out_count": scaling.count.numpy(),
        "held_out_documents": scaling.documents.numpy(),
        "vector": [latent_name(row) for row in range(len(dead))],
    }
    for target, values in scaling.beta.items():
        for side, name in ((BASE, "base"), (FINETUNED, "finetuned")):
            columns[f"beta_{target}_{name}"] = values[side].numpy()
    columns = {
        name: measured(values) if getattr(values, "dtype", None) == np.float64 else values
        for name, values in columns.items()
    }
    # By how far the evidence is beyond what is asked of it: with few documents, more is asked.
    margin = np.where(
        np.isfinite(evidence[FINETUNED]), evidence[FINETUNED] / np.where(np.isfinite(needed), needed, 1e9), -np.inf
    )
    order = np.lexsort((np.arange(len(dead)), -margin, dead))
    columns["rank"] = np.argsort(order)
    return LatentTable(columns, order, explained)


def _needed(documents: np.ndarray, latents: int) -> np.ndarray:
    """Evidence from which on a latent counts as one model's own: a t statistic over its documents, for all latents
    together.
    """
    with np.errstate(invalid="ignore"):
        return np.where(
            documents >= LEAST_DOCUMENTS, stats.t.isf(LEVEL / latents, np.maximum(documents - 1, 1)), np.inf
        )


def _tags(relative: np.ndarray, dead: np.ndarray) -> list[str]:
    names = np.full(len(relative), "other", dtype=object)
    names[(relative >= SHARED[0]) & (relative <= SHARED[1])] = "shared"
    names[relative < ONLY] = "base_only"
    names[relative > 1 - ONLY] = "finetuned_only"
    names[dead] = "dead"
    return [str(name) for name in names]


def surplus_chance(finetuned: int, base: int) -> float:
    """Probability of so many of the finetuned model's own latents or more, were each of them either model's with
    probability 1/2.
    """
    total = finetuned + base
    return float(stats.binomtest(finetuned, total, 0.5, alternative="greater").pvalue) if total else 1.0


def count_owned(table: LatentTable, owner: Owner) -> int:
    """Latents that are one model's own."""
    return sum(each == owner for each in table.columns["owner"])


def headline(finetuned: int, base: int, words: Iterable[Iterable[str]]) -> tuple[bool, str]:
    """Whether it stands out, and the outcome in one sentence. `words` are those of each of the finetuned model's own
    latents.
    """
    chance = surplus_chance(finetuned, base)
    counts = (
        f"{finetuned} latents are the finetuned model's own and {base} the base's, by latent scaling on held-out tokens"
    )
    common = Counter(word for each in words for word in set(each))
    read = f"; their lens reads {', '.join(word for word, _ in common.most_common(6))}" if common else ""
    if chance <= CHANCE:
        return True, f"{counts} (chance {chance:.2g} if models were alike){read}."
    if finetuned:
        return (
            False,
            (
                f"{counts}: no more than models that differ at random would have (chance {chance:.2g}){read}. Look at "
                "the latents all the same."
            ),
        )
    return False, f"{counts}: no latent is new in the finetuned model."


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
    table = analyse(prepared, progress)
    directions = prepared.dictionary.decoder_of(FINETUNED).cpu() / prepared.dictionary.normalisation.scale
    readings, examples = read_latents(pair, params, prepared, table, directions, run, progress)
    columns = table.columns
    own = [latent for latent in readings if columns["owner"][latent] == "finetuned"]
    finetuned, base = count_owned(table, "finetuned"), count_owned(table, "base")
    stands_out, sentence = headline(finetuned, base, (readings[latent].words for latent in own))
    tags = Counter(columns["tag"])
    dead = tags.pop("dead", 0)
    return CrosscoderResult(
        stands_out=stands_out,
        headline=sentence,
        identical=False,
        training=training_note(prepared, table.explained, dead),
        tags=dict(tags),
        owned_by_finetuned=finetuned,
        owned_by_base=base,
        words=common_words([readings[latent].words for latent in own]),
        latents=latent_rows(params, columns, readings, examples),
    )
