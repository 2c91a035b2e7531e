"""Scores of single tokens, sums of the difference by position and special token, and the run that follows from both.

Norms and distances in float32, sums in float64. The cosine distance is half the squared distance of the unit vectors:
exact where 1 - cos rounds, and exactly 0 where the activations agree. Memory: 16 bytes a token and layer and 12 a
token, and O(layers x labels x d_model) sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from diffing_mcp.methods.activation_analysis.schema import (
    SCORES,
    ActivationAnalysisParams,
    ActivationAnalysisResult,
    LabelRow,
    Score,
    SinkRow,
    Summary,
    WordRow,
)
from diffing_mcp.methods.activation_analysis.words import (
    LEAST_DOCUMENTS,
    SHOWN_WORDS,
    corpus_words,
    group_medians,
    top_words,
    word_rows,
    word_statistics,
)
from diffing_mcp.methods.examples.reader import Example
from diffing_mcp.methods.examples.top import TopExamples
from diffing_mcp.methods.examples.views import example_row
from diffing_mcp.methods.examples.writer import corpus_contexts, examples_of
from diffing_mcp.methods.texts.words import TokenNames
from diffing_mcp.preprocessing.batches import Accumulator, PairedBatch
from diffing_mcp.preprocessing.precision import float64_device

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus


COLUMNS = ("norm_difference", "cosine_distance", "norm_base", "norm_finetuned")
MEASURED_POSITIONS = 5
"""Positions with a mean of their own; later ones are pooled in `all` (earlier ones may be attention sinks)."""
MAX_SPECIAL = 24
_TINY = torch.finfo(torch.float32).tiny
SINK_FACTOR = 5.0
"""Norms above this many medians of the layer are attention sinks: massive activations are 5 to hundreds of times as
long as others.
"""
SHOWN_SINKS = 3


@dataclass
class LabelSums:
    """By label: count [P], sum of differences [P, D], and sums of the norms of difference and finetuned activations
    [P], float64.
    """

    count: Tensor
    difference: Tensor
    norm_difference: Tensor
    norm_finetuned: Tensor


def special_labels(corpus: TokenizedCorpus, tokenizer: Any) -> dict[int, str]:
    """Special and added tokens that the corpus holds (BOS, control tokens of the chat template): id -> text, the most
    frequent first.
    """
    special = np.asarray(
        sorted({*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}), dtype=np.int64
    )
    ids = np.concatenate([np.asarray(row, dtype=np.int64) for row in corpus.ids])
    found, counts = np.unique(ids[np.isin(ids, special)], return_counts=True)
    chosen = found[np.argsort(-counts, kind="stable")][:MAX_SPECIAL].tolist()
    texts = tokenizer.convert_ids_to_tokens(chosen)
    return {token: str(text) for token, text in zip(chosen, texts, strict=True)}


def token_scores(base: Tensor, finetuned: Tensor) -> Tensor:
    """The scores of `COLUMNS` of activations [N, d_model] float32: [4, N]."""
    norms = [rows.norm(dim=1) for rows in (base, finetuned)]
    units = [rows / norm.clamp_min(_TINY).unsqueeze(1) for rows, norm in zip((base, finetuned), norms, strict=True)]
    return torch.stack([(finetuned - base).norm(dim=1), (units[1] - units[0]).square().sum(dim=1) / 2, *norms])


class ActivationAnalysisAccumulator(Accumulator):
    """See the module. Per-token arrays are in the order of the pass; `samples` and `positions` say what each entry is.

    Args:
        labels: special token id -> its text; these get a mean of their own, in prompts too.
        before: positions of the pass before the answer's first token (chats), else 0.
    """

    def __init__(
        self,
        layers: tuple[int, ...],
        corpus: TokenizedCorpus,
        labels: dict[int, str],
        before: int,
        d_model: int,
        device: str,
    ) -> None:
        self.layers = layers
        self.corpus = corpus
        self.single = before + MEASURED_POSITIONS
        self.special_ids = torch.tensor(list(labels), dtype=torch.long)
        self.labels = [*(str(place - before) for place in range(self.single)), "all", *labels.values()]
        self.scores = {layer: np.zeros((len(COLUMNS), corpus.tokens), dtype=np.float32) for layer in layers}
        self.samples = np.zeros(corpus.tokens, dtype=np.int32)
        self.positions = np.zeros(corpus.tokens, dtype=np.int32)
        self.token_ids = np.zeros(corpus.tokens, dtype=np.int32)
        self.filled = 0
        self._device = float64_device(device)
        self.sums = {layer: self._empty(len(self.labels), d_model) for layer in layers}

    def _empty(self, labels: int, d_model: int) -> LabelSums:
        wide, flat = (labels, d_model), (labels,)
        return LabelSums(
            *(torch.zeros(*shape, dtype=torch.float64, device=self._device) for shape in (flat, wide, flat, flat))
        )

    def update(self, batch: PairedBatch) -> None:
        """Take in a batch's hidden states."""
        rows = batch.compared_rows
        place = slice(self.filled, self.filled + len(rows))
        self.filled += len(rows)
        self.samples[place] = batch.row_samples[rows].cpu().numpy()
        self.positions[place] = batch.flat_positions[rows].cpu().numpy()
        self.token_ids[place] = batch.flat_ids[rows].cpu().numpy()
        labelled, membership = self._membership(batch)
        for layer in self.layers:
            base, finetuned = batch.base_hidden[layer], batch.finetuned_hidden[layer]
            base, finetuned = (hidden.reshape(-1, hidden.shape[-1]) for hidden in (base, finetuned))
            self.scores[layer][:, place] = token_scores(base[rows].float(), finetuned[rows].float()).cpu().numpy()
            before, after = (hidden[labelled].to(self._device, torch.float64) for hidden in (base, finetuned))
            difference, sums = after - before, self.sums[layer]
            sums.count += membership.sum(dim=1)
            sums.difference += membership @ difference
            sums.norm_difference += membership @ difference.norm(dim=1)
            sums.norm_finetuned += membership @ after.norm(dim=1)

    def _membership(self, batch: PairedBatch) -> tuple[Tensor, Tensor]:
        """Rows that count for some label, and for which [labels, rows] float64."""
        positions = batch.flat_positions
        special = self.special_ids.to(positions.device)
        specials = (batch.flat_ids.unsqueeze(0) == special.unsqueeze(1)) & (batch.attention_mask.reshape(1, -1) > 0)
        rows = ((positions >= 0) | specials.any(dim=0)).nonzero().squeeze(1)
        places = positions[rows]
        numbers = torch.arange(self.single, device=places.device).unsqueeze(1)
        parts = [places.unsqueeze(0) == numbers, (places >= self.single).unsqueeze(0), specials[:, rows]]
        return rows, torch.cat(parts).to(self._device, torch.float64)


def all_scores(columns: np.ndarray) -> dict[str, np.ndarray]:
    scores = dict(zip(COLUMNS, columns, strict=True))
    both = scores["norm_base"].astype(np.float64) + scores["norm_finetuned"]
    return {"relative_difference": (scores["norm_difference"] / np.maximum(both, 1e-30)).astype(np.float32), **scores}


def sinks_of(scores: dict[str, np.ndarray]) -> np.ndarray:
    sink = np.zeros(len(scores["norm_base"]), dtype=bool)
    for name in ("norm_base", "norm_finetuned"):
        sink |= scores[name] > SINK_FACTOR * np.median(scores[name])
    return sink


def summary_of(layer: int, score: Score, values: np.ndarray) -> Summary:
    values = values.astype(np.float64) if len(values) else np.zeros(1)
    p5, p25, median, p75, p95, p99 = np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)).tolist()
    inner = values[(values >= p5) & (values <= p95)]
    return Summary(
        layer=layer,
        score=score,
        median=median,
        spread=1.4826 * float(np.median(np.abs(values - median))),
        trimmed_mean=float(inner.mean()) if len(inner) else median,
        mean=float(values.mean()),
        p5=p5,
        p25=p25,
        p75=p75,
        p95=p95,
        p99=p99,
        max=float(values.max()),
    )


def sink_rows(
    layer: int,
    sink: np.ndarray,
    scores: dict[str, np.ndarray],
    token_ids: np.ndarray,
    positions: np.ndarray,
    names: TokenNames,
) -> list[SinkRow]:
    median = float(np.median(scores["norm_base"])) if len(sink) else 0.0
    found, counts = np.unique(token_ids[sink], return_counts=True)
    rows = []
    for token in found[np.argsort(-counts, kind="stable")][:SHOWN_SINKS].tolist():
        here = sink & (token_ids == token)
        rows.append(
            SinkRow(
                layer=layer,
                token=names(token),
                position=int(np.bincount(positions[here]).argmax()),
                count=int(here.sum()),
                norm=float(scores["norm_base"][here].mean()) / max(median, 1e-30),
                relative_difference=float(scores["relative_difference"][here].mean()),
            )
        )
    return rows


def profile_of(layer: int, scores: dict[str, np.ndarray], positions: np.ndarray) -> dict[str, np.ndarray]:
    size = int(positions.max(initial=-1)) + 1
    medians = {name: group_medians(values.astype(np.float64), positions, size) for name, values in scores.items()}
    counts = np.bincount(positions, minlength=size)
    columns = {"layer": np.full(size, layer), "position": np.arange(size), "tokens": counts, **medians}
    return {
        name: values[counts > 0] for name, values in columns.items()
    }  # stored activations leave out the first positions


def label_rows(accumulator: ActivationAnalysisAccumulator) -> list[LabelRow]:
    rows = []
    for layer, sums in accumulator.sums.items():
        count = sums.count.clamp_min(1)
        norms = (sums.difference / count.unsqueeze(1)).norm(dim=1).tolist()
        for index, label in enumerate(accumulator.labels):
            if not (seen := int(sums.count[index])):
                continue
            single, finetuned = float(sums.norm_difference[index]) / seen, float(sums.norm_finetuned[index]) / seen
            rows.append(
                LabelRow(
                    layer=layer,
                    label=label,
                    count=seen,
                    mean_difference_norm=norms[index],
                    relative_norm=norms[index] / finetuned if finetuned else 0.0,
                    norm_difference=single,
                    coherence=norms[index] / single if single else None,
                    vector=f"{layer}:{label}:difference",
                )
            )
    return rows


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
    run.add_rows("words", all_words, WordRow)
    run.add_rows("summaries", summaries, Summary)
    run.add_rows("labels", labels, LabelRow)
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


def store_means(run: RunWriter, accumulator: ActivationAnalysisAccumulator) -> None:
    """Mean difference vectors [layers, labels, d_model] float32."""
    import torch

    means = [sums.difference / sums.count.clamp_min(1).unsqueeze(1) for sums in accumulator.sums.values()]
    run.add_array("mean_difference", torch.stack(means).to(torch.float32))
    finetuned = [sums.norm_finetuned / sums.count.clamp_min(1) for sums in accumulator.sums.values()]
    run.add_array("norm_finetuned", torch.stack(finetuned).to(torch.float32))
