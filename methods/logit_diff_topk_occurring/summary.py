"""From the fed accumulator to the stored run and its result."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from diffing_mcp.methods.logit_diff_topk_occurring.evidence import (
    CERTAIN_LOG_ODDS,
    NEEDED_STRONG_WORDS,
    NEGLIGIBLE_SHARE,
    PRIOR_PER_THOUSAND,
    Entries,
    Rise,
    make_entries,
    rises,
    stands_out,
    strong,
)
from diffing_mcp.methods.logit_diff_topk_occurring.schema import (
    LogitDifferenceParams,
    LogitDifferenceResult,
    NewTokenRow,
    PositionRow,
    RisenWord,
    TokenRow,
    TopicRow,
)
from diffing_mcp.methods.logit_diff_topk_occurring.topics import Topics, exemplars, find_topics, topic_matrix
from diffing_mcp.methods.texts.words import Vocabulary, vocabulary

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.logit_diff_topk_occurring.occurrences import LogitDifferenceAccumulator
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus

_TOKENS_SHOWN = 8
_TOKENS_JUDGED = 20
_EXEMPLARS = 10
_BEFORE, _AFTER = 14, 5
_EXEMPLAR_SHOWN = 90
_NEW_SHOWN = 5
_BINS_SHOWN = 8
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
        accumulator.expected.base.cpu().numpy(),
        accumulator.expected.finetuned.cpu().numpy(),
    )
    entries = _entries(accumulator, words, expected_base, expected_finetuned, params.normalise)
    rise = rises(
        words.merge(expected_base), words.merge(expected_finetuned), accumulator.expected.rows, PRIOR_PER_THOUSAND
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
    found = stands_out(rise, is_strong)
    return LogitDifferenceResult(
        stands_out=found,
        headline=_headline(identical, found, count, rows),
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


def _headline(identical: bool, found: bool, count: int, rows: list[RisenWord]) -> str:
    if identical:
        return "Every logit is the same in both models: no difference."
    if found:
        names = ", ".join(row.word for row in rows[:6] if row.strong)
        return f"{count} content word{'s rise' if count > 1 else ' rises'} beyond the fixed level; first: {names}."
    few = f"only {count} content words rise" if count else "no content word rises"
    return (
        f"Nothing stands out: {few} beyond the fixed level (needed: {NEEDED_STRONG_WORDS}, or one "
        f"{math.exp(CERTAIN_LOG_ODDS):.0f} times as often)."
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
    run.add_array("rows_by_fold", accumulator.expected.rows)
    run.add_array("risen_by_bin", accumulator.risen_by_bin.int())
    run.add_table("entries", {"text": entries.texts, "special": entries.special, "content": entries.content})
    run.add_table("vocabulary", {"text": words.texts, "special": words.special})
    run.note("positions", accumulator.rows)
    run.note("position_zero", accumulator.corpus.position_origin)


def store_topics(
    accumulator: LogitDifferenceAccumulator,
    pair: LoadedPair,
    params: LogitDifferenceParams,
    words: Vocabulary,
    is_strong: np.ndarray,
    run: RunWriter,
) -> tuple[list[TopicRow], dict[int, float]]:
    """Factorise the kept positions; `is_strong` [W] are the strong words. Returns the topics' rows and the stability by
    number of topics.
    """
    kept = accumulator.kept()
    expected = np.maximum(
        *(each.sum(dim=0).cpu().numpy() for each in (accumulator.expected.base, accumulator.expected.finetuned))
    )
    shown = ~words.special & (expected >= NEGLIGIBLE_SHARE * accumulator.rows / len(words.texts))
    found: Topics | None = None
    if params.topic_entries != "none" and len(kept.samples):
        matrix = topic_matrix(kept, shown, params.topic_entries)
        samples, positions = kept.samples[matrix.rows], kept.positions[matrix.rows]
        found = find_topics(matrix, samples, params.topics, params.most_topics, params.factorisation, params.seed)
    rows: list[TopicRow] = []
    texts: list[list[str]] = []
    if found is not None:
        mass, prevalence, concentration = found.mass, found.prevalence, found.concentration
        for topic in range(len(found.weights)):
            order = np.argsort(-found.weights[topic], kind="stable")[:_TOKENS_JUDGED]
            ids = matrix.columns[order[found.weights[topic][order] > 0]]
            places = exemplars(found, samples, topic, _EXEMPLARS)
            texts.append([context(pair, accumulator.corpus, int(samples[row]), int(positions[row])) for row in places])
            stability = float(found.stability[topic])
            rows.append(
                TopicRow(
                    topic=topic,
                    mass=round(float(mass[topic]), 4),
                    prevalence=round(float(prevalence[topic]), 4),
                    concentration=round(float(concentration[topic]), 4),
                    stability=round(stability, 4) if np.isfinite(stability) else None,
                    strong_words=int(is_strong[np.unique(words.word_index[ids])].sum()),
                    tokens=[words.texts[index] for index in ids[:_TOKENS_SHOWN]],
                    exemplar=_around_mark(texts[-1][0]) if texts[-1] else "",
                )
            )
        run.add_array("topic_weights", found.weights.astype(np.float32))
        run.add_array("topic_columns", matrix.columns)
        curve = {number: round(value, 4) for number, value in found.curve.items() if np.isfinite(value)}
    else:
        run.add_array("topic_weights", np.zeros((0, 0), dtype=np.float32))
        run.add_array("topic_columns", np.zeros(0, dtype=np.int64))
        curve = {}
    fields = ("topic", "mass", "prevalence", "concentration", "stability")
    run.add_table("topics", {**{name: [getattr(row, name) for row in rows] for name in fields}, "exemplars": texts})
    run.note("topic_stability", {str(number): value for number, value in curve.items()})
    return rows, curve


def context(pair: LoadedPair, corpus: TokenizedCorpus, sample: int, position: int) -> str:
    """The text around a position on one line, with ▸ where the next token would come."""
    read, rest = corpus.split_after(sample, position)
    before, after = (pair.tokenizer.decode(part) for part in (read[-_BEFORE:], rest[:_AFTER]))
    return " ".join(f"{before}▸{after}".split())


def _around_mark(text: str) -> str:
    """The end of what stands before the mark, and what comes after it."""
    return text if len(text) <= _EXEMPLAR_SHOWN else f"…{text[1 - _EXEMPLAR_SHOWN :]}"


def find_positions(accumulator: LogitDifferenceAccumulator, run: RunWriter) -> list[PositionRow]:
    """The positional profile; stores all of it, returns its first rows."""
    counts = accumulator.rows_by_bin.cpu().numpy()
    sizes = accumulator.size_by_bin.cpu().numpy()
    lasts = [*(accumulator.bins[1:] - 1), accumulator.positions.lengths.max() - 1]
    rows = [
        PositionRow(
            first=int(first), last=int(last), positions=int(count), mean_size=float(f"{size / max(1, count):.4g}")
        )
        for first, last, count, size in zip(accumulator.bins, lasts, counts, sizes, strict=True)
    ]
    run.add_rows("positions", rows, PositionRow)
    return rows[:_BINS_SHOWN]


def find_new_tokens(
    accumulator: LogitDifferenceAccumulator, pair: LoadedPair, run: RunWriter
) -> tuple[list[NewTokenRow], float]:
    """Tokens that the finetune added, by expected occurrences, and the sum over all: those beyond the common
    vocabulary, and those in rows that are padding in the base model. Rows beyond it without a token count in the sum
    alone."""
    scale = 1000 / max(1, accumulator.rows)
    common = accumulator.expected.finetuned.sum(dim=0).cpu().numpy()
    beyond = np.zeros(0) if accumulator.expected_new is None else accumulator.expected_new.cpu().numpy()
    expected = {index: float(common[index]) for index in pair.new_tokens if index < pair.vocab_size}
    expected |= {
        index: float(beyond[index - pair.vocab_size])
        for index in pair.new_tokens
        if 0 <= index - pair.vocab_size < len(beyond)
    }
    total = float(beyond.sum()) + sum(value for index, value in expected.items() if index < pair.vocab_size)
    order = sorted(expected, key=lambda index: -expected[index])
    rows = [
        NewTokenRow(id=index, token=pair.new_tokens[index], per_thousand=round(expected[index] * scale, 6))
        for index in order
    ]
    run.add_rows("new_tokens", rows, NewTokenRow)
    return rows[:_NEW_SHOWN], round(total * scale, 6)
