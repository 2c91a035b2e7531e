"""Rows of `activation_analysis` from its per-token arrays: scores, sinks, summaries, words, position
profile, labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from diffing_mcp.methods.activation_analysis.accumulator import COLUMNS, ActivationAnalysisAccumulator
from diffing_mcp.methods.activation_analysis.judgement import WordStatistics, group_medians
from diffing_mcp.methods.activation_analysis.rows import LabelRow, Score, SinkRow, Summary, WordRow
from diffing_mcp.methods.activation_analysis.words import CorpusWords

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import RunWriter

SINK_FACTOR = 5.0
"""Norms above this many medians of the layer are attention sinks: massive activations are 5 to hundreds of times as
long as others.
"""
SHOWN_WORDS, SHOWN_SINKS = 8, 3


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


def word_rows(
    layer: int, scores: dict[str, np.ndarray], words: CorpusWords, statistics: WordStatistics, kept: np.ndarray
) -> list[WordRow]:
    """One row a word, highest z first, words in too few documents last."""
    size = len(words.texts)
    word, instance = words.word[words.instance][kept], words.instance[kept]
    tokens = np.bincount(word, minlength=size)
    counts = np.bincount(words.word[np.unique(instance)], minlength=size)
    means = {
        name: np.bincount(word, weights=scores[name][kept], minlength=size) / np.maximum(1, tokens)
        for name in ("relative_difference", "norm_difference", "cosine_distance")
    }
    seen = np.flatnonzero(counts)
    order = seen[
        np.lexsort((seen, -means["relative_difference"][seen], -np.nan_to_num(statistics.z[seen], nan=-np.inf)))
    ]
    return [
        WordRow(
            layer=layer,
            word=words.texts[index],
            content=bool(words.content[index]),
            count=int(counts[index]),
            documents=int(statistics.documents[index]),
            factor=float(statistics.factor[index]),
            z=_number(statistics.z[index]),
            p=_number(statistics.p[index]),
            **{name: float(values[index]) for name, values in means.items()},
        )
        for index in order.tolist()
    ]


def top_words(rows: list[WordRow]) -> list[WordRow]:
    """Content words of highest z over the layers, each once."""
    best: dict[str, WordRow] = {}
    for row in rows:
        if row.content and row.z is not None and (row.word not in best or row.z > (best[row.word].z or 0.0)):
            best[row.word] = row
    return sorted(best.values(), key=lambda row: -(row.z or 0.0))[:SHOWN_WORDS]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


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


def store_means(run: RunWriter, accumulator: ActivationAnalysisAccumulator) -> None:
    """Mean difference vectors [layers, labels, d_model] float32."""
    import torch

    means = [sums.difference / sums.count.clamp_min(1).unsqueeze(1) for sums in accumulator.sums.values()]
    run.add_array("mean_difference", torch.stack(means).to(torch.float32))
    finetuned = [sums.norm_finetuned / sums.count.clamp_min(1) for sums in accumulator.sums.values()]
    run.add_array("norm_finetuned", torch.stack(finetuned).to(torch.float32))


class TokenNames:
    """Texts of tokens, decoded once each."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, token: int) -> str:
        return str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))

    def column(self, tokens: np.ndarray) -> Any:
        """Names of many tokens as a dictionary-encoded column."""
        import pyarrow as pa

        unique, indices = np.unique(tokens, return_inverse=True)
        return pa.DictionaryArray.from_arrays(
            pa.array(indices.astype(np.int32)), pa.array([self(int(token)) for token in unique])
        )
