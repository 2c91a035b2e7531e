"""Every latent of an SAE on differences in numbers, and in which order they are worth a look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.methods.dictionaries.evaluation import ExplainedVariance, ExplainedVarianceSums
from diffing_mcp.methods.dictionaries.latent_scaling import BASE, FINETUNED, ActivationScalingSums
from diffing_mcp.methods.dictionaries.latent_table import LatentCounts, measured
from diffing_mcp.methods.dictionaries.preparation import Prepared


@dataclass(frozen=True)
class SAEAnalysis:
    """Columns [F] of the latent table, and how much the SAE explains of held-out tokens. `order` lists all latents by
    `share`, dead ones last.
    """

    columns: dict[str, Any]
    order: np.ndarray
    explained: ExplainedVariance


def analyse(prepared: Prepared, progress: Progress = silent) -> SAEAnalysis:
    """One pass over all tokens, of which the held-out ones also judge."""
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
        "vector": [f"latent{row}" for row in range(len(share))],
    }
    return SAEAnalysis(columns, order, result)
