"""Statistics of loss changes: ratios over samples, bootstrap intervals, ranks among nulls. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 1000


def per_token(nats: np.ndarray, tokens: np.ndarray) -> float:
    """Sum over sum: nats a token."""
    return float(nats.sum() / tokens.sum())


def interval(nats: np.ndarray, tokens: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap of `per_token` over samples; the estimate itself when there is one sample."""
    drawn = np.random.default_rng(seed).integers(0, len(nats), size=(RESAMPLES, len(nats)))
    low, high = np.quantile(nats[drawn].sum(axis=1) / tokens[drawn].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


def rank_p(effect: float, nulls: Sequence[float]) -> float:
    """(1 + nulls at least as large in size) / (1 + nulls)."""
    return (1 + sum(abs(null) >= abs(effect) for null in nulls)) / (1 + len(nulls))


def share(effect: float, gap: float, gap_interval: tuple[float, float]) -> float | None:
    """Effect over gap; None when the gap's interval holds 0 or the gap is zero."""
    low, high = gap_interval
    return None if gap == 0 or low <= 0 <= high else effect / gap
