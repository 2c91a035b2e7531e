"""From the accumulated numbers to the stored run and the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from diffing_mcp.methods.activation_analysis.schema import (
    SCORES,
    ActivationAnalysisParams,
    ActivationAnalysisResult,
    LabelRow,
    SinkRow,
    Summary,
    WordRow,
)
from diffing_mcp.methods.activation_analysis.token_scores import (
    ActivationAnalysisAccumulator,
    TokenNames,
    all_scores,
    label_rows,
    profile_of,
    sink_rows,
    sinks_of,
    summary_of,
)
from diffing_mcp.methods.activation_analysis.words import (
    LEAST_DOCUMENTS,
    SHOWN_WORDS,
    corpus_words,
    top_words,
    word_rows,
    word_statistics,
)
from diffing_mcp.methods.examples.reader import Example
from diffing_mcp.methods.examples.top import TopExamples
from diffing_mcp.methods.examples.views import example_row
from diffing_mcp.methods.examples.writer import corpus_contexts, examples_of

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair

BIN_QUANTILES = (0.5, 0.9, 0.99)
SHOWN_EXAMPLES = 4
_BINS = 60


def summarise(
    accumulator: ActivationAnalysisAccumulator, pair: LoadedPair, params: ActivationAnalysisParams, run: RunWriter
) -> ActivationAnalysisResult:
    """Store tables, mean differences and examples, and judge what stands out."""
    corpus = accumulator.corpus
    order = np.lexsort((accumulator.positions, accumulator.samples))
    samples, positions, token_ids = (
        array[order].astype(np.int64) for array in (accumulator.samples, accumulator.positions, accumulator.token_ids)
    )
    words = corpus_words(token_ids, samples, pair.tokenizer)
    names = TokenNames(pair.tokenizer)
    table: dict[str, Any] = {"sample": samples, "position": positions, "token": names.column(token_ids)}
    summaries: list[Summary] = []
    sinks: list[SinkRow] = []
    all_words: list[WordRow] = []
    standing: list[WordRow] = []
    shown: list[Example] = []
    profile: dict[str, list[Any]] = {}
    for layer in accumulator.layers:
        scores = all_scores(accumulator.scores[layer][:, order])
        table |= {f"{name}@{layer}": values for name, values in scores.items()}
        sink = sinks_of(scores)
        summaries += [summary_of(layer, name, scores[name][~sink]) for name in SCORES]
        sinks += sink_rows(layer, sink, scores, token_ids, positions, names)
        statistics = word_statistics(scores["relative_difference"], positions, samples, words, ~sink, params.seed)
        rows = word_rows(layer, scores, words, statistics, ~sink)
        all_words += rows
        by_word = {row.word: row for row in rows}
        standing += [by_word[words.texts[index]] for index in statistics.standing]
        for name, column in profile_of(layer, scores, positions).items():
            profile.setdefault(name, []).append(column)
        _histogram(run, layer, scores, ~sink)
        found = _write_examples(run, accumulator, pair, params, layer, scores, samples, positions, ~sink)
        shown += found[:SHOWN_EXAMPLES] if scores["relative_difference"].any() else []
    labels = label_rows(accumulator)
    store_means(run, accumulator)
    run.add_table("tokens", table)
    run.add_table("words", _columns(all_words, WordRow))
    run.add_table("summaries", _columns(summaries, Summary))
    run.add_table("labels", _columns(labels, LabelRow))
    run.add_table("profile", {name: np.concatenate(columns) for name, columns in profile.items()})
    run.add_array("layers", np.asarray(accumulator.layers, dtype=np.int64))
    run.note("labels", accumulator.labels)
    identical = not any(accumulator.scores[layer][0].any() for layer in accumulator.layers)
    standing.sort(key=lambda row: -(row.z or 0.0))
    return ActivationAnalysisResult(
        stands_out=bool(standing),
        headline=_headline(identical, standing, summaries),
        identical=identical,
        tokens=accumulator.filled,
        samples=len(corpus.ids),
        position_origin=corpus.position_origin,
        stored=corpus.stored,
        summaries=[row for row in summaries if row.score != "norm_base"],
        sinks=sinks,
        standing_words=standing[:SHOWN_WORDS],
        words=[] if identical else top_words(all_words),
        labels=labels,
        examples=[example_row(found, 100) for found in shown],
    )


def _histogram(run: RunWriter, layer: int, scores: dict[str, np.ndarray], kept: np.ndarray) -> None:
    """Counts over the logarithm (base 10) of the relative difference; exact zeros are counted apart."""
    values = scores["relative_difference"][kept]
    logs = np.log10(values[values > 0].astype(np.float64))
    edges = np.linspace(logs.min(), logs.max() + 1e-9, _BINS + 1) if len(logs) else np.linspace(-4, 0, _BINS + 1)
    run.add_array(f"histogram.{layer}.edges", edges)
    run.add_array(f"histogram.{layer}.counts", np.histogram(logs, edges)[0])
    run.add_array(f"histogram.{layer}.zeros", np.array([int((values == 0).sum())]))


def _write_examples(
    run: RunWriter,
    accumulator: ActivationAnalysisAccumulator,
    pair: LoadedPair,
    params: ActivationAnalysisParams,
    layer: int,
    scores: dict[str, np.ndarray],
    samples: np.ndarray,
    positions: np.ndarray,
    kept: np.ndarray,
) -> list[Example]:
    """Top places of every score, at most one a text, in bins of the score's own quantiles, sinks left out; gives those
    of the relative difference.
    """
    corpus = accumulator.corpus
    writer = run.examples(params.examples)
    contexts = corpus_contexts(corpus, pair.tokenizer)
    starts = np.searchsorted(samples, np.arange(len(corpus.ids) + 1))
    shown: list[Example] = []
    for name in SCORES:
        values = scores[name]
        edges = np.quantile(values[kept].astype(np.float64), BIN_QUANTILES) if kept.any() else ()
        top = TopExamples(params.examples, edges, least=0.0)
        top.add(0, values[kept], samples[kept], positions[kept])

        def of_text(_: int, sample: int, values: np.ndarray = values) -> np.ndarray:
            given = np.full(len(corpus.ids[sample]), np.nan, dtype=np.float32)
            given[corpus.content_start[sample] :] = values[starts[sample] : starts[sample + 1]]
            return given

        side = {"norm_base": "base", "norm_finetuned": "finetuned"}.get(name, "")
        made = list(examples_of(top.found(), lambda _, name=name: f"{name}@{layer}", contexts, of_text, side))  # type: ignore[misc]
        writer.append(made)
        shown = shown or sorted(made, key=lambda found: -found.score)
    return shown


def _headline(identical: bool, standing: list[WordRow], summaries: list[Summary]) -> str:
    if identical:
        return "Every activation is the same in both models: no difference."
    sizes = [row for row in summaries if row.score == "relative_difference"]
    size = "; ".join(
        f"layer {row.layer}: {100 * row.median:.2g} %, 99th percentile {100 * row.p99:.2g} %" for row in sizes[:3]
    )
    if standing:
        names = ", ".join(dict.fromkeys(row.word for row in standing[:6]))
        return (
            f"The finetuned model represents {names} far more differently than other words, text after text (relative "
            f"difference, {size})."
        )
    return (
        f"No word's activations differ beyond the spread of all words (relative difference, {size}). Size alone is no "
        f"evidence: any training moves activations. Words in fewer than {LEAST_DOCUMENTS} texts cannot be judged."
    )


def _columns(rows: list[Any], model: Any) -> dict[str, Any]:
    import pyarrow as pa

    types = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), float | None: pa.float64()}

    return {
        name: pa.array([getattr(row, name) for row in rows], type=types.get(field.annotation, pa.string()))
        for name, field in model.model_fields.items()
    }


def store_means(run: RunWriter, accumulator: ActivationAnalysisAccumulator) -> None:
    """Mean difference vectors [layers, labels, d_model] float32."""
    import torch

    means = [sums.difference / sums.count.clamp_min(1).unsqueeze(1) for sums in accumulator.sums.values()]
    run.add_array("mean_difference", torch.stack(means).to(torch.float32))
    finetuned = [sums.norm_finetuned / sums.count.clamp_min(1) for sums in accumulator.sums.values()]
    run.add_array("norm_finetuned", torch.stack(finetuned).to(torch.float32))
