"""Every latent of a crosscoder in numbers: decoder norms, latent scaling, whose own it is, and in which order they are
worth a look.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.methods.dictionaries.evaluation import ExplainedVariance, ExplainedVarianceSums
from diffing_mcp.methods.dictionaries.latent_scaling import BASE, FINETUNED, LatentScaling, LatentScalingSums
from diffing_mcp.methods.dictionaries.latent_table import LatentCounts, measured
from diffing_mcp.methods.dictionaries.preparation import Prepared

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


@dataclass(frozen=True)
class CrosscoderAnalysis:
    """Columns [F] of the latent table, and how much the crosscoder explains of held-out tokens. `order` lists all
    latents, the first to look at first.
    """

    columns: dict[str, Any]
    order: np.ndarray
    explained: ExplainedVariance

    def owned(self, owner: str) -> int:
        """Latents that are that model's own."""
        return sum(each == owner for each in self.columns["owner"])


def analyse(prepared: Prepared, progress: Progress = silent) -> CrosscoderAnalysis:
    """One pass over all tokens for frequencies, of which the held-out ones also judge: explained variance and latent
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
) -> CrosscoderAnalysis:
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
        "vector": [f"latent{row}" for row in range(len(dead))],
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
    return CrosscoderAnalysis(columns, order, explained)


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
