"""From the fed accumulator to the stored run and its result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffing_mcp.methods.activation_difference_lens.accumulator import ActivationDifferenceAccumulator, LayerStatistics
from diffing_mcp.methods.activation_difference_lens.declaration import (
    ActivationDifferenceLensParams,
    ActivationDifferenceLensResult,
)
from diffing_mcp.methods.activation_difference_lens.judgement import judge
from diffing_mcp.methods.activation_difference_lens.rows import PositionRow
from diffing_mcp.methods.activation_difference_lens.views import LENS_DEPTH, SOURCES
from diffing_mcp.methods.directions.lens import Lens
from diffing_mcp.methods.directions.lens_words import LensToken, RankedBy, Reading, strongest
from diffing_mcp.methods.texts.words import Vocabulary, vocabulary

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair

_TOKENS_SHOWN = 90
"""Lens tokens in a result at most, over all rows and both signs."""
_DIRECTION_SEED = 0


def summarise(
    accumulator: ActivationDifferenceAccumulator,
    pair: LoadedPair,
    params: ActivationDifferenceLensParams,
    run: RunWriter,
) -> ActivationDifferenceLensResult:
    """Store means, norms and lens lists in `run` and return the result."""
    words = vocabulary(pair.tokenizer, pair.vocab_size)
    slots = [
        slot
        for slot in range(len(accumulator.labels))
        if any(float(stats.count[slot]) for stats in accumulator.statistics.values())
    ]
    labels = [accumulator.labels[slot] for slot in slots]
    _store_means(run, accumulator, slots)
    run.note("positions", labels)
    run.note("position_zero", accumulator.position_zero)
    table: dict[str, list[Any]] = {
        name: []
        for name in (
            "layer",
            "position",
            "source",
            "sign",
            "ranked_by",
            "token_id",
            "token",
            "content",
            "z",
            "probability",
        )
    }
    rows: list[PositionRow] = []
    readings: list[Reading] = []
    shown = max(3, min(params.list_length, _TOKENS_SHOWN // (2 * len(slots) * len(accumulator.layers))))
    for layer, statistics in accumulator.statistics.items():
        norm = float(statistics.finetuned_norm[slots[-1]] / statistics.count[slots[-1]])
        lens = Lens(pair, params.lens_side, norm, params.random_directions, _DIRECTION_SEED)
        for slot, label in zip(slots, labels, strict=True):
            sources = (statistics.mean[slot], statistics.base_mean[slot], statistics.finetuned_mean[slot])
            tokens: dict[str, list[LensToken]] = {"promoted": [], "suppressed": []}
            for source, vector in zip(SOURCES, sources, strict=True):
                pair_of_readings = lens.read(vector.cpu())
                if pair_of_readings is None:
                    continue
                for sign, reading in zip(("promoted", "suppressed"), pair_of_readings, strict=True):
                    _add_lists(table, words, reading, layer, label, source, sign)
                    if source == "difference":
                        tokens[sign] = strongest(reading, words, shown)
                if source == "difference":
                    readings.append(pair_of_readings[0])
            rows.append(_row(statistics, slot, layer, label, pair.num_layers, tokens))
    run.add_table("lens", table)
    run.add_table("positions", _columns(rows))
    judgement = judge(rows, readings, words)
    return ActivationDifferenceLensResult(
        stands_out=judgement.stands_out,
        headline=judgement.headline,
        identical=not any(row.difference_norm for row in rows),
        words=judgement.words[: params.list_length],
        rows=rows,
        position_zero=accumulator.position_zero,
        stored=accumulator.stored,
        samples=accumulator.samples,
        lens_side=params.lens_side,
        random_directions=params.random_directions,
    )


def _add_lists(
    table: dict[str, list[Any]], words: Vocabulary, reading: Reading, layer: int, label: str, source: str, sign: str
) -> None:
    orders: tuple[RankedBy, ...] = ("z", "probability")
    for ranked_by in orders:
        chosen = reading.order(ranked_by)[:LENS_DEPTH]
        table["layer"] += [layer] * len(chosen)
        table["position"] += [label] * len(chosen)
        table["source"] += [source] * len(chosen)
        table["sign"] += [sign] * len(chosen)
        table["ranked_by"] += [ranked_by] * len(chosen)
        table["token_id"] += chosen.tolist()
        table["token"] += [words.texts[index] for index in chosen]
        table["content"] += words.content[chosen].tolist()
        table["z"] += reading.z[chosen].tolist()
        table["probability"] += reading.probability[chosen].tolist()


def _row(
    statistics: LayerStatistics, slot: int, layer: int, label: str, num_layers: int, tokens: dict[str, list[LensToken]]
) -> PositionRow:
    count = float(statistics.count[slot])
    norm = float(statistics.mean[slot].norm())
    finetuned_norm = float(statistics.finetuned_norm[slot]) / max(1.0, count)
    variance = float(statistics.squares[slot].sum()) / (count - 1) if count > 1 else 0.0
    standard_error = (variance / count) ** 0.5 if count else 0.0
    return PositionRow(
        layer=layer,
        relative_layer=round(layer / (num_layers - 1), 4) if num_layers > 1 else 0.0,
        position=label,
        count=int(count),
        difference_norm=norm,
        relative_norm=norm / finetuned_norm if finetuned_norm else 0.0,
        spread=variance**0.5,
        finetuned_norm=finetuned_norm,
        base_norm=float(statistics.base_norm[slot]) / max(1.0, count),
        stability=_stability(statistics, slot),
        signal_to_noise=norm / standard_error if standard_error else None,
        vector=f"{layer}:{label}:difference",
        promoted=tokens["promoted"],
        suppressed=tokens["suppressed"],
    )


def _stability(statistics: LayerStatistics, slot: int) -> float | None:
    first, second = statistics.half_sum[0, slot], statistics.half_sum[1, slot]
    if not float(first.norm()) or not float(second.norm()):
        return None
    return float(torch.dot(first, second) / (first.norm() * second.norm()))


def _columns(rows: list[PositionRow]) -> dict[str, list[Any]]:
    dumped = [row.model_dump(exclude={"promoted", "suppressed"}) for row in rows]
    return {name: [row[name] for row in dumped] for name in dumped[0]} if dumped else {}


def _store_means(run: RunWriter, accumulator: ActivationDifferenceAccumulator, slots: list[int]) -> None:
    statistics = list(accumulator.statistics.values())
    stacked = {
        "difference": [stats.mean[slots] for stats in statistics],
        "base_mean": [stats.base_mean[slots] for stats in statistics],
        "finetuned_mean": [stats.finetuned_mean[slots] for stats in statistics],
        "difference_std": [
            (stats.squares[slots] / (stats.count[slots] - 1).clamp_min(1).unsqueeze(1)).sqrt() for stats in statistics
        ],
    }
    for name, parts in stacked.items():
        run.add_array(name, torch.stack(parts).to(torch.float32))
    run.add_array("count", torch.stack([stats.count[slots] for stats in statistics]).cpu().numpy().astype(np.int64))
    run.add_array("layers", np.asarray(list(accumulator.statistics), dtype=np.int64))
