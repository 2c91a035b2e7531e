"""Synthetic activations of two models with known features: the planted benchmark of dictionaries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffing_mcp.preprocessing.activations import ActivationBlock


@dataclass
class PlantedActivations:
    """A `PairedActivations`: sparse sums of unit directions, some of which only the finetuned model has.

    Attributes:
        directions: [n, d_model]; own: indices of those that only the finetuned model has.
        active: [N, n] bool, which features each token has.
    """

    directions: Tensor
    own: list[int]
    active: Tensor
    base: Tensor
    finetuned: Tensor
    tokens_per_sample: int = 1
    layer: int = 0
    first_position: int = 0
    content_hash: str = "planted"

    @property
    def d_model(self) -> int:
        return self.base.shape[1]

    @property
    def num_tokens(self) -> int:
        return len(self.base)

    @property
    def num_samples(self) -> int:
        return -(-self.num_tokens // self.tokens_per_sample)

    def blocks(
        self, rows: int, seed: int | None = None, start: int = 0, stop: int | None = None
    ) -> Iterator[ActivationBlock]:
        stop = self.num_tokens if stop is None else min(stop, self.num_tokens)
        order = torch.arange(start, stop)
        if seed is not None:
            order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))]
        for chosen in order.split(rows):
            yield ActivationBlock(self.base[chosen], self.finetuned[chosen], chosen)

    def samples(self) -> Iterator[ActivationBlock]:
        return self.blocks(self.tokens_per_sample)

    def locate(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return tokens // self.tokens_per_sample, tokens % self.tokens_per_sample

    def sample_ids(self, sample: int) -> list[int]:
        return list(range(self.tokens_per_sample))


def plant(
    seed: int,
    tokens: int,
    features: int = 200,
    own: int = 10,
    d_model: int = 64,
    mean_active: float = 6.0,
    own_rate: float | None = None,
    last_rate: float | None = None,
    noise: float = 0.02,
    identical: bool = False,
) -> PlantedActivations:
    """Features are active independently, `mean_active` a token, with strengths uniform in [0.5, 1.5]; the last `own`
    are the finetuned model's alone (at `own_rate` when given, the last of them at `last_rate`). Noise differs between
    the models unless they are identical."""
    # Another stream than that of the weights: with equal seeds the first weights would be the planted directions.
    generator = torch.Generator().manual_seed(1_000_003 + seed)
    directions = torch.randn(features, d_model, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    rate = torch.full((features,), mean_active / features)
    mine = list(range(features - own, features))
    if own_rate is not None:
        rate[mine] = own_rate
    if last_rate is not None:
        rate[-1] = last_rate
    active = torch.rand(tokens, features, generator=generator) < rate
    strengths = active * (0.5 + torch.rand(tokens, features, generator=generator))
    shared = strengths.clone()
    shared[:, mine] = 0
    base = shared @ directions + noise * torch.randn(tokens, d_model, generator=generator)
    finetuned = (
        base.clone()
        if identical
        else strengths @ directions + noise * torch.randn(tokens, d_model, generator=generator)
    )
    return PlantedActivations(directions, mine, active, base, finetuned)
