"""Topics, positional profile and added tokens of a fed accumulator: stored in the run, and as rows of its result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diffing_mcp.methods.logit_diff_topk_occurring.accumulator import LogitDifferenceAccumulator
from diffing_mcp.methods.logit_diff_topk_occurring.rows import NewTokenRow, PositionRow, TopicRow
from diffing_mcp.methods.logit_diff_topk_occurring.topics import Topics, exemplars, find_topics, topic_matrix
from diffing_mcp.methods.logit_diff_topk_occurring.views import NEGLIGIBLE_SHARE
from diffing_mcp.methods.texts.words import Vocabulary

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.logit_diff_topk_occurring.declaration import LogitDifferenceParams
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus

_TOKENS_SHOWN = 8
_TOKENS_JUDGED = 20
_EXEMPLARS = 10
_BEFORE, _AFTER = 14, 5
_EXEMPLAR_SHOWN = 90
_NEW_SHOWN = 5
_BINS_SHOWN = 8


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
        *(each.sum(dim=0).cpu().numpy() for each in (accumulator.expected_base, accumulator.expected_finetuned))
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
    ids = corpus.ids[sample]
    place = corpus.content_start[sample] + position + 1
    before, after = (
        pair.tokenizer.decode(part) for part in (ids[max(0, place - _BEFORE) : place], ids[place : place + _AFTER])
    )
    return " ".join(f"{before}▸{after}".split())


def _around_mark(text: str) -> str:
    """The end of what stands before the mark, and what comes after it."""
    return text if len(text) <= _EXEMPLAR_SHOWN else f"…{text[1 - _EXEMPLAR_SHOWN :]}"


def find_positions(accumulator: LogitDifferenceAccumulator, run: RunWriter) -> list[PositionRow]:
    """The positional profile; stores all of it, returns its first rows."""
    counts = accumulator.rows_by_bin.cpu().numpy()
    sizes = accumulator.size_by_bin.cpu().numpy()
    lasts = [
        *(accumulator.bins[1:] - 1),
        max(
            len(ids) - start
            for ids, start in zip(accumulator.corpus.ids, accumulator.corpus.content_start, strict=True)
        )
        - 1,
    ]
    rows = [
        PositionRow(
            first=int(first), last=int(last), positions=int(count), mean_size=float(f"{size / max(1, count):.4g}")
        )
        for first, last, count, size in zip(accumulator.bins, lasts, counts, sizes, strict=True)
    ]
    run.add_table("positions", {name: [getattr(row, name) for row in rows] for name in PositionRow.model_fields})
    return rows[:_BINS_SHOWN]


def find_new_tokens(
    accumulator: LogitDifferenceAccumulator, pair: LoadedPair, run: RunWriter
) -> tuple[list[NewTokenRow], float]:
    """Tokens that the finetune added, by expected occurrences, and the sum over all: those beyond the common
    vocabulary, and those in rows that are padding in the base model. Rows beyond it without a token count in the sum
    alone."""
    scale = 1000 / max(1, accumulator.rows)
    common = accumulator.expected_finetuned.sum(dim=0).cpu().numpy()
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
    run.add_table("new_tokens", {name: [getattr(row, name) for row in rows] for name in NewTokenRow.model_fields})
    return rows[:_NEW_SHOWN], round(total * scale, 6)
