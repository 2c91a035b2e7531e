"""How much the next-token distributions differ at every position, and what each model writes where they differ most."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from diffing_mcp.methods.continuation_mining.phrases import distinctive_ngrams, group_phrases, judge
from diffing_mcp.methods.continuation_mining.schema import (
    ContinuationMiningParams,
    ContinuationMiningResult,
    ContinuationRow,
    NgramRow,
)
from diffing_mcp.methods.texts.distinctive_words import worth_showing
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
from diffing_mcp.model_pairs.specs import SIDES, Side
from diffing_mcp.preprocessing.batches import Accumulator, LogitChunk

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus

_BEFORE_SHOWN, _CONTINUATION_SHOWN = 60, 100
_REVERSE_SHOWN = 5
_PHRASES_SHOWN = 8


class VariationAccumulator(Accumulator):
    """Total variation distance at each position: 0.5 * sum over tokens of |p_finetuned - p_base|, 0 to 1. Exactly 0
    where the logits agree.

    Measured on probabilities, so that the drift of logits which neither model's text depends on counts for nothing.
    """

    needs_logits = True

    def __init__(self, pair: LoadedPair, corpus: TokenizedCorpus) -> None:
        self.corpus = corpus
        lengths = [len(ids) - start for ids, start in zip(corpus.ids, corpus.content_start, strict=True)]
        self._offsets = torch.tensor([0, *lengths[:-1]], device=pair.device).cumsum(0)
        self.variation = torch.zeros(corpus.tokens, dtype=torch.float32, device=pair.device)
        self.samples = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        self.positions = torch.cat([torch.arange(length) for length in lengths])

    def update_logits(self, chunk: LogitChunk) -> None:
        """Take in a chunk of positions."""
        moved = torch.sub(chunk.finetuned_probs, chunk.base_probs, out=chunk.scratch("moved"))
        places = self._offsets[chunk.sample_indices] + chunk.positions
        self.variation[places] = 0.5 * torch.linalg.vector_norm(moved, ord=1, dim=1)


def summarise(
    accumulator: VariationAccumulator, pair: LoadedPair, params: ContinuationMiningParams, run: RunWriter
) -> ContinuationMiningResult:
    """Go on from the positions that differ most with both models, count phrases, judge."""
    variation = accumulator.variation.cpu().numpy()
    samples, positions = accumulator.samples.numpy(), accumulator.positions.numpy()
    chosen = most_different(variation, samples, positions, params)
    texts = [_before(pair, accumulator, int(samples[index]), int(positions[index])) for index in chosen]
    written: dict[Side, list[str]] = {side: [] for side in SIDES}
    if texts:
        sampling = Sampling(temperature=0, max_new_tokens=params.new_tokens)
        for side in SIDES:
            with pair.side_loaded(side):
                completions = pair.generate(side, [GenerationRequest(text=text) for text in texts], sampling)
            written[side] = [several[0].text for several in completions]
    pairs_of = {
        side: [(int(samples[index]), text) for index, text in zip(chosen, written[side], strict=True)] for side in SIDES
    }
    rises = distinctive_ngrams(pairs_of["finetuned"], pairs_of["base"], params.longest_ngram)
    reverse = [
        row.model_copy(update={"finetuned": row.base, "base": row.finetuned})
        for row in distinctive_ngrams(pairs_of["base"], pairs_of["finetuned"], params.longest_ngram)
    ]
    rows = [
        ContinuationRow(before=text, variation=round(float(variation[index]), 4), base=base, finetuned=finetuned)
        for index, text, base, finetuned in zip(chosen, texts, written["base"], written["finetuned"], strict=True)
    ]
    run.add_table(
        "continuations", {name: [getattr(row, name) for row in rows] for name in ContinuationRow.model_fields}
    )
    for name, several in (("ngrams", rises), ("base_ngrams", reverse)):
        run.add_table(name, {field: [getattr(row, field) for row in several] for field in NgramRow.model_fields})
    run.add_array("variation", variation)
    identical = not np.any(variation)
    found, headline = judge(rises, identical)
    shown = worth_showing(rises)
    groups = group_phrases(shown, written["finetuned"], written["base"])
    return ContinuationMiningResult(
        stands_out=found,
        headline=headline,
        identical=identical,
        groups=[
            group.model_copy(
                update={
                    "examples": [text[:_CONTINUATION_SHOWN] for text in group.examples],
                    "phrases": group.phrases[:_PHRASES_SHOWN],
                }
            )
            for group in groups[: params.list_length]
        ],
        ngrams=shown[: params.list_length],
        base_ngrams=worth_showing(reverse)[:_REVERSE_SHOWN],
        strong_ngrams=sum(row.strong for row in rises),
        rows=[_shown(row) for row in rows[: max(1, params.list_length // 2)]],
        places=len(rows),
        positions=len(variation),
        mean_variation=float(f"{variation.mean(dtype=np.float64):.4g}"),
    )


def most_different(
    variation: np.ndarray, samples: np.ndarray, positions: np.ndarray, params: ContinuationMiningParams
) -> np.ndarray:
    """Indices of the positions with the largest variation (never 0), at most `places_per_text` a text and `places` in
    all, largest first.
    """
    order = np.argsort(-variation, kind="stable")
    order = order[(variation[order] > 0) & (positions[order] >= params.earliest)]
    taken: dict[int, int] = {}
    chosen = []
    for index in order:
        sample = int(samples[index])
        if taken.get(sample, 0) < params.places_per_text:
            taken[sample] = taken.get(sample, 0) + 1
            chosen.append(index)
            if len(chosen) == params.places:
                break
    return np.array(chosen, dtype=np.int64)


def _before(pair: LoadedPair, accumulator: VariationAccumulator, sample: int, position: int) -> str:
    """The text up to and with a position. A leading BOS is left out: the tokenizer puts it there again."""
    corpus = accumulator.corpus
    begin = 1 if corpus.has_bos else 0
    return str(pair.tokenizer.decode(corpus.ids[sample][begin : corpus.content_start[sample] + position + 1]))


def _shown(row: ContinuationRow) -> ContinuationRow:
    return row.model_copy(
        update={
            "before": row.before[-_BEFORE_SHOWN:],
            "base": row.base[:_CONTINUATION_SHOWN],
            "finetuned": row.finetuned[:_CONTINUATION_SHOWN],
        }
    )
