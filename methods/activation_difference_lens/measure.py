"""Mean activation differences by layer and position: streaming, storing, reading through the lens, and when that stands
out (see docs/decisions/null-criterion.md).

One Welford mean and squared deviation a slot, where a slot is one position, or `all`: every position from `POOLED_FROM`
on. The first positions are left out of `all` because the first token of a text is an attention sink whose norm, tens of
times that of other positions, would drown the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from diffing_mcp.methods.activation_difference_lens.schema import (
    LENS_DEPTH,
    SOURCES,
    ActivationDifferenceLensParams,
    ActivationDifferenceLensResult,
    LensWord,
    PositionRow,
)
from diffing_mcp.methods.directions.lens import Lens
from diffing_mcp.methods.directions.lens_words import NULL_Z, LensReading, LensToken, RankedBy, content_words, strongest
from diffing_mcp.methods.texts.words import Vocabulary, vocabulary
from diffing_mcp.preprocessing.batches import Accumulator, PairedBatch
from diffing_mcp.preprocessing.precision import float64_device

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair

POOLED_FROM = 5
"""First position that counts for the slot `all` (in a chat: counted from the answer's first token)."""
_TOKENS_SHOWN = 90
"""Lens tokens in a result at most, over all rows and both signs."""
_DIRECTION_SEED = 0
LEAST_PLACES = 2
"""Layers and positions that must promote a strong word."""
NEEDED_STRONG_WORDS = 3
STABLE = 0.5
"""Least cosine between the means of two halves of the samples for a mean difference to be read at all."""


@dataclass
class LayerStatistics:
    """Per slot [P] and dimension [D], float64.

    Attributes:
        count: [P] activations seen.
        mean, squares: [P, D] mean of the difference and sum of squared deviations from it (Welford).
        base_mean, finetuned_mean: [P, D].
        half_count, half_sum: [2, P] and [2, P, D], of the difference, over samples of even and odd index.
        base_norm, finetuned_norm, difference_norm: [P] sums of L2 norms.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor
    base_mean: Tensor
    finetuned_mean: Tensor
    half_count: Tensor
    half_sum: Tensor
    base_norm: Tensor
    finetuned_norm: Tensor
    difference_norm: Tensor

    @classmethod
    def empty(cls, slots: int, d_model: int, device: torch.device) -> LayerStatistics:
        """All zero."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        wide, flat = (slots, d_model), (slots,)
        return cls(
            zeros(*flat),
            zeros(*wide),
            zeros(*wide),
            zeros(*wide),
            zeros(*wide),
            zeros(2, *flat),
            zeros(2, *wide),
            zeros(*flat),
            zeros(*flat),
            zeros(*flat),
        )


class ActivationDifferenceAccumulator(Accumulator):
    """Feeds on hidden states only; memory O(layers x positions x d_model).

    Args:
        layers: absolute layers.
        labels: names of the single positions kept, from position 0 of the pass on; the last slot is `all`.
        pooled_from: first position of the pass that counts for `all`.
        samples, position_zero, stored: of the corpus, for the result.
    """

    def __init__(
        self,
        layers: tuple[int, ...],
        labels: list[str],
        pooled_from: int,
        d_model: int,
        device: torch.device | str,
        samples: int = 0,
        position_zero: str = "",
        stored: str | None = None,
    ) -> None:
        self.layers = layers
        self.labels = [*labels, "all"]
        self.positions = positions = len(labels)
        self.pooled_from = pooled_from
        self.samples = samples
        self.position_zero = position_zero
        self.stored = stored
        self.device = float64_device(device)  # the sums stay beside the activations where they can
        self.statistics = {layer: LayerStatistics.empty(positions + 1, d_model, self.device) for layer in layers}

    def update(self, batch: PairedBatch) -> None:
        """Take in a batch's hidden states."""
        places = batch.flat_positions
        wanted = ((places >= 0) & ((places < self.positions) | (places >= self.pooled_from))).nonzero().squeeze(1)
        if wanted.numel() == 0:
            return
        chosen = places[wanted].to(self.device)
        membership = torch.zeros(self.positions + 1, wanted.numel(), dtype=torch.float64, device=self.device)
        single = (chosen < self.positions).nonzero().squeeze(1)
        membership[chosen[single], single] = 1.0
        membership[self.positions] = (chosen >= self.pooled_from).to(torch.float64)
        odd = (batch.row_samples[wanted].to(self.device) % 2).to(torch.float64)
        for layer in self.layers:
            base = _rows(batch.base_hidden[layer], wanted, self.device)
            finetuned = _rows(batch.finetuned_hidden[layer], wanted, self.device)
            _add(self.statistics[layer], membership, odd, base, finetuned)


def _rows(hidden: Tensor, wanted: Tensor, device: torch.device) -> Tensor:
    return hidden.reshape(-1, hidden.shape[-1])[wanted].to(device, torch.float64)


def _add(total: LayerStatistics, membership: Tensor, odd: Tensor, base: Tensor, finetuned: Tensor) -> None:
    """Add N activations [N, D]; `membership` [P, N] says which slots they count for, `odd` [N] which half."""
    difference = finetuned - base
    added = membership.sum(dim=1)
    count = total.count + added
    share = torch.where(count > 0, added / count.clamp_min(1), torch.zeros_like(count)).unsqueeze(1)
    per_slot = added.clamp_min(1).unsqueeze(1)
    batch_mean = (membership @ difference) / per_slot
    # Centred on the old running mean, sums of squares lose no digits (Chan et al., pairwise update).
    shift = torch.where(added.unsqueeze(1) > 0, batch_mean - total.mean, torch.zeros_like(batch_mean))
    for slot in added.nonzero().squeeze(1).tolist():
        rows = difference[membership[slot] > 0]
        total.squares[slot] += (rows - batch_mean[slot]).square().sum(dim=0) + shift[slot].square() * (
            total.count[slot] * share[slot]
        )
    total.mean += shift * share
    for running, values in ((total.base_mean, base), (total.finetuned_mean, finetuned)):
        running += (
            torch.where(added.unsqueeze(1) > 0, (membership @ values) / per_slot - running, torch.zeros_like(running))
            * share
        )
    total.count = count
    for half, weight in enumerate((1 - odd, odd)):
        total.half_count[half] += membership @ weight
        total.half_sum[half] += (membership * weight) @ difference
    total.base_norm += membership @ base.norm(dim=1)
    total.finetuned_norm += membership @ finetuned.norm(dim=1)
    total.difference_norm += membership @ difference.norm(dim=1)


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
    readings: list[LensReading] = []
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
    stands_out, headline, listed = judge(rows, readings, words)
    return ActivationDifferenceLensResult(
        stands_out=stands_out,
        headline=headline,
        identical=not any(row.difference_norm for row in rows),
        words=listed[: params.list_length],
        rows=rows,
        position_zero=accumulator.position_zero,
        stored=accumulator.stored,
        samples=accumulator.samples,
        lens_side=params.lens_side,
        random_directions=params.random_directions,
    )


def _add_lists(
    table: dict[str, list[Any]], words: Vocabulary, reading: LensReading, layer: int, label: str, source: str, sign: str
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


def judge(
    rows: Sequence[PositionRow], readings: Sequence[LensReading], words: Vocabulary
) -> tuple[bool, str, list[LensWord]]:
    """Whether several places promote several strong content words, the headline, and the words of the stable lists.

    Args:
        rows: one a layer and position.
        readings: of the difference, one for each row whose difference is not zero, in the same order.
    """
    moved = [row for row in rows if row.difference_norm > 0]
    if not moved:
        return False, "Every activation is the same in both models: no difference.", []
    found: dict[str, tuple[float, int]] = {}
    stable = 0
    for row, reading in zip(moved, readings, strict=True):
        if row.stability is None or row.stability < STABLE:
            continue
        stable += 1
        for word, z in content_words(reading, words).items():
            highest, places = found.get(word, (0.0, 0))
            found[word] = (max(highest, z), places + 1)
    listed = [LensWord(word=word, z=round(z, 3), places=places) for word, (z, places) in found.items()]
    listed.sort(key=lambda row: (row.places < LEAST_PLACES, -row.z, row.word))
    strong = [row for row in listed if row.z >= NULL_Z and row.places >= LEAST_PLACES]
    size = max(row.relative_norm for row in moved)
    state = (
        f"mean differences up to {100 * size:.2g} % of the activations' norm, {stable} of {len(moved)} stable over "
        "halves of the samples"
    )
    if len(strong) >= NEEDED_STRONG_WORDS:
        return (
            True,
            (
                f"Several positions promote {', '.join(row.word for row in strong[:6])} far beyond random directions; "
                f"{state}."
            ),
            listed,
        )
    return (
        False,
        (
            f"No words stand out of the lens; {state}. A large stable difference means a real change, whatever it "
            "reads as."
        ),
        listed,
    )
