"""From the fed accumulator to the stored run and its result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diffing_mcp.methods.logit_diff_topk_occurring.accumulator import LogitDifferenceAccumulator
from diffing_mcp.methods.logit_diff_topk_occurring.declaration import LogitDifferenceParams, LogitDifferenceResult
from diffing_mcp.methods.logit_diff_topk_occurring.evidence import (
    NEEDED_STRONG_WORDS,
    PRIOR_PER_THOUSAND,
    Rise,
    rises,
    strong,
)
from diffing_mcp.methods.logit_diff_topk_occurring.findings import find_new_tokens, find_positions, store_topics
from diffing_mcp.methods.logit_diff_topk_occurring.rows import RisenWord, TokenRow
from diffing_mcp.methods.logit_diff_topk_occurring.views import Entries, make_entries
from diffing_mcp.methods.texts.words import Vocabulary, vocabulary

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair

_LEAST_GAIN_LISTED = 1e-3
"""Words listed as evidence gained at least this many expected occurrences per 1,000 positions."""


def summarise(
    accumulator: LogitDifferenceAccumulator,
    layer: int | None,
    pair: LoadedPair,
    params: LogitDifferenceParams,
    run: RunWriter,
) -> LogitDifferenceResult:
    """Store the vocabulary's statistics in `run` and return the result. `layer`: the one that was read, None for the
    models' output.
    """
    words = vocabulary(pair.tokenizer, pair.vocab_size)
    expected_base, expected_finetuned = (
        accumulator.expected_base.cpu().numpy(),
        accumulator.expected_finetuned.cpu().numpy(),
    )
    entries = _entries(accumulator, words, expected_base, expected_finetuned, params.normalise)
    rise = rises(
        words.merge(expected_base), words.merge(expected_finetuned), accumulator.rows_by_fold, PRIOR_PER_THOUSAND
    )
    is_strong = strong(rise) & words.word_content
    _store(run, accumulator, words, entries, expected_base, expected_finetuned)
    rows = _word_rows(
        words,
        rise,
        is_strong,
        expected_base.sum(axis=0),
        expected_finetuned.sum(axis=0),
        accumulator.rows,
        params.list_length,
    )
    lists: dict[str, list[TokenRow]] = {}
    left_out = 0
    for sign in ("risen", "fallen"):
        order = entries.order(params.ordering, sign)
        shown = order[entries.shown[order]]
        left_out += len(order) - len(shown)
        lists[sign] = [TokenRow(**entries.row(int(index), sign)) for index in shown[: params.list_length]]
    topics, stability = store_topics(accumulator, pair, params, words, is_strong, run)
    new_tokens, new_share = find_new_tokens(accumulator, pair, run)
    profile = find_positions(accumulator, run)
    count = int(is_strong.sum())
    identical = not np.any(entries.risen) and not np.any(entries.fallen)
    stands_out = count >= NEEDED_STRONG_WORDS
    return LogitDifferenceResult(
        stands_out=stands_out,
        headline=_headline(identical, stands_out, count, rows),
        identical=identical,
        words=rows,
        strong_words=count,
        needed_strong_words=NEEDED_STRONG_WORDS,
        risen=lists["risen"],
        fallen=lists["fallen"],
        ordering=params.ordering,
        topics=topics,
        topic_stability=stability,
        position_profile=profile,
        new_tokens=new_tokens,
        new_tokens_per_thousand=new_share,
        extraction=params.extraction,
        layer=layer,
        left_out=left_out,
        positions=accumulator.rows,
        samples=len(accumulator.corpus.ids),
        top_k=accumulator.top_k,
        position_zero=accumulator.corpus.position_origin,
    )


def _headline(identical: bool, stands_out: bool, count: int, rows: list[RisenWord]) -> str:
    if identical:
        return "Every logit is the same in both models: no difference."
    if stands_out:
        names = ", ".join(row.word for row in rows[:6] if row.strong)
        return (
            f"{count} content words are expected more often than a finetune that taught nothing explains; first: "
            f"{names}."
        )
    few = f"only {count} content words are" if count else "no content word is"
    return (
        f"Nothing stands out: {few} expected more often than a finetune that taught nothing explains (needed: "
        f"{NEEDED_STRONG_WORDS})."
    )


def _entries(
    accumulator: LogitDifferenceAccumulator,
    words: Vocabulary,
    expected_base: np.ndarray,
    expected_finetuned: np.ndarray,
    normalise: bool,
) -> Entries:
    positions = max(1, accumulator.rows)
    counts = (accumulator.risen.cpu().numpy(), accumulator.fallen.cpu().numpy())
    share = accumulator.positive.cpu().numpy().astype(np.float64) / positions
    mean = accumulator.sum.cpu().numpy().astype(np.float64) / positions
    base, finetuned = expected_base.sum(axis=0), expected_finetuned.sum(axis=0)
    if not normalise:
        return make_entries(
            words.texts, words.special, words.content, counts, (share, mean), (base, finetuned), accumulator.rows
        )
    variants = np.bincount(words.word_index, minlength=len(words.words))
    special = np.zeros(len(words.words), dtype=bool)
    np.logical_or.at(special, words.word_index, words.special)
    return make_entries(
        words.words,
        special,
        words.word_content,
        counts,
        (words.merge(share) / variants, words.merge(mean) / variants),
        (words.merge(base), words.merge(finetuned)),
        accumulator.rows,
    )


def _word_rows(
    words: Vocabulary,
    rise: Rise,
    is_strong: np.ndarray,
    base: np.ndarray,
    finetuned: np.ndarray,
    positions: int,
    length: int,
) -> list[RisenWord]:
    """Content words, strong ones first, by the lower end of their log odds (two standard errors below)."""
    sure = rise.log_odds - 2 * np.where(np.isfinite(rise.error), rise.error, np.abs(rise.log_odds))
    listed = np.flatnonzero(words.word_content & (rise.log_odds > 0) & (rise.gain >= _LEAST_GAIN_LISTED))
    order = listed[np.lexsort((-sure[listed], ~is_strong[listed]))][:length]
    merged_base, merged_finetuned = words.merge(base), words.merge(finetuned)
    scale = 1000 / max(1, positions)
    return [
        RisenWord(
            word=words.words[index],
            log_odds=round(float(rise.log_odds[index]), 4),
            error=round(float(rise.error[index]), 4) if np.isfinite(rise.error[index]) else None,
            per_thousand_base=round(float(merged_base[index]) * scale, 6),
            per_thousand_finetuned=round(float(merged_finetuned[index]) * scale, 6),
            strong=bool(is_strong[index]),
        )
        for index in order
    ]


def _store(
    run: RunWriter,
    accumulator: LogitDifferenceAccumulator,
    words: Vocabulary,
    entries: Entries,
    base: np.ndarray,
    finetuned: np.ndarray,
) -> None:
    run.add_array("risen", entries.risen)
    run.add_array("fallen", entries.fallen)
    run.add_array("share_positive", entries.share_positive)
    run.add_array("mean_difference", entries.mean_difference)
    run.add_array("entry_expected_base", entries.expected_base)
    run.add_array("entry_expected_finetuned", entries.expected_finetuned)
    run.add_array("expected_base", base.astype(np.float64))
    run.add_array("expected_finetuned", finetuned.astype(np.float64))
    run.add_array("rows_by_fold", accumulator.rows_by_fold)
    run.add_array("risen_by_bin", accumulator.risen_by_bin.int())
    run.add_table("entries", {"text": entries.texts, "special": entries.special, "content": entries.content})
    run.add_table("vocabulary", {"text": words.texts, "special": words.special})
    run.note("positions", accumulator.rows)
    run.note("position_zero", accumulator.corpus.position_origin)
