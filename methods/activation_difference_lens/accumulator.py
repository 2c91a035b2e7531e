"""Streaming means of both models' residual streams and of their difference, by layer and position.

One Welford mean and squared deviation a slot, where a slot is one position, or `all`: every position from `POOLED_FROM`
on. The first positions are left out of `all` because the first token of a text is an attention sink whose norm, tens of
times that of other positions, would drown the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffing_mcp.preprocessing.batches import Accumulator, PairedBatch
from diffing_mcp.preprocessing.precision import float64_device

POOLED_FROM = 5
"""First position that counts for the slot `all` (in a chat: counted from the answer's first token)."""


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
