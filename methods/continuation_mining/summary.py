"""From the fed accumulator to both models' continuations at the positions that differ most, and what is in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diffing_mcp.methods.continuation_mining.accumulator import VariationAccumulator
from diffing_mcp.methods.continuation_mining.clusters import group_phrases
from diffing_mcp.methods.continuation_mining.declaration import ContinuationMiningParams, ContinuationMiningResult
from diffing_mcp.methods.continuation_mining.ngrams import distinctive_ngrams, judge
from diffing_mcp.methods.continuation_mining.rows import ContinuationRow, NgramRow
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
from diffing_mcp.model_pairs.specs import SIDES, Side

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair

_BEFORE_SHOWN, _CONTINUATION_SHOWN = 60, 100
_LEAST_SURPRISE_SHOWN = 1.3
_REVERSE_SHOWN = 5
_PHRASES_SHOWN = 8


def summarise(
    accumulator: VariationAccumulator, pair: LoadedPair, params: ContinuationMiningParams, run: RunWriter
) -> ContinuationMiningResult:
    """Continue, count, judge; see the declaration."""
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
    stands_out, headline = judge(rises, identical)
    shown = [row for row in rises if row.surprise >= _LEAST_SURPRISE_SHOWN]
    groups = group_phrases(shown, written["finetuned"], written["base"])
    return ContinuationMiningResult(
        stands_out=stands_out,
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
        base_ngrams=[row for row in reverse if row.surprise >= _LEAST_SURPRISE_SHOWN][:_REVERSE_SHOWN],
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
