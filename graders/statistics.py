"""Statistics of grades: intervals, rates, and how far graders agree.
Deterministic: whatever is resampled takes a seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist

import numpy as np
from pydantic import BaseModel, Field


class Interval(BaseModel):
    """An estimate with its confidence interval."""

    estimate: float
    low: float
    high: float
    count: int = Field(description="Observations that it rests on.")
    confidence: float = 0.95


class Agreement(BaseModel):
    """How far two series of scores of the same findings agree."""

    exact: float = Field(description="Share of equal scores.")
    within_one: float = Field(description="Share of scores at most 1 apart.")
    weighted_kappa: float | None = Field(
        description=(
            "Cohen's kappa with quadratic weights; None when both series are one constant, where it is undefined."
        )
    )
    count: int


def wilson_interval(successes: int, count: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a rate (E. B. Wilson, JASA 22, 1927). Right for small counts and for rates of 0 and 1.

    Raises ValueError unless 0 <= successes <= count, count >= 1 and 0 < confidence < 1.
    """
    if count < 1 or not 0 <= successes <= count or not 0 < confidence < 1:
        raise ValueError(
            f"need 0 <= successes <= count, count >= 1 and 0 < confidence < 1; got {successes}, {count}, {confidence}"
        )
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / count
    centre = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    low = 0.0 if successes == 0 else max(0.0, min(centre - half, rate))
    high = 1.0 if successes == count else min(1.0, max(centre + half, rate))
    return Interval(estimate=rate, low=low, high=high, count=count, confidence=confidence)


def bootstrap_mean(
    values: Sequence[float],
    *,
    clusters: Sequence[object] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a mean.

    Args:
        values: one grade each.
        clusters: group of each value, such as the organism; then whole groups are resampled, since repeats on one
            organism are not independent.

    Raises ValueError for no values or clusters of another length.
    """
    groups = _groups(values, clusters)
    sums = np.array([group.sum() for group in groups])
    sizes = np.array([len(group) for group in groups], dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(groups), size=(resamples, len(groups)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return _percentiles(means, float(sums.sum() / sizes.sum()), len(values), confidence)


def bootstrap_paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    *,
    clusters: Sequence[object] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of the mean of `first - second`, both on the same cells in the same order (two arms on the
    same organisms and repeats).
    """
    if len(first) != len(second):
        raise ValueError(f"paired series have the same length; got {len(first)} and {len(second)}")
    differences = [one - other for one, other in zip(first, second, strict=True)]
    return bootstrap_mean(differences, clusters=clusters, confidence=confidence, resamples=resamples, seed=seed)


def false_positive_rate(asserted_on_nulls: Iterable[bool], confidence: float = 0.95) -> Interval | None:
    """Share of the findings on nulls that assert a difference (`false_positive` of their grades), with Wilson's
    interval. None without nulls.
    """
    outcomes = list(asserted_on_nulls)
    return wilson_interval(sum(outcomes), len(outcomes), confidence) if outcomes else None


def agreement(first: Sequence[int], second: Sequence[int], levels: int = 5) -> Agreement:
    """Agreement of two graders (or two readings) on the same findings, scores 1 to `levels`.

    Kappa with quadratic weights: J. Cohen, Psychological Bulletin 70 (1968).
    Raises ValueError for series that are empty, unequal in length or out of range.
    """
    if not first or len(first) != len(second):
        raise ValueError(f"need two series of the same length >= 1; got {len(first)} and {len(second)}")
    if any(not 1 <= score <= levels for score in (*first, *second)):
        raise ValueError(f"scores are whole numbers from 1 to {levels}")
    one, other = np.asarray(first), np.asarray(second)
    gap = np.abs(one - other)
    scale = np.arange(1, levels + 1)
    share_one = np.array([(one == level).mean() for level in scale])
    share_other = np.array([(other == level).mean() for level in scale])
    expected = float(((scale[:, None] - scale[None, :]) ** 2 * share_one[:, None] * share_other[None, :]).sum())
    kappa = None if expected == 0 else 1 - float((gap**2).mean()) / expected
    return Agreement(
        exact=float((gap == 0).mean()), within_one=float((gap <= 1).mean()), weighted_kappa=kappa, count=len(first)
    )


def _groups(values: Sequence[float], clusters: Sequence[object] | None) -> list[np.ndarray]:
    if not values:
        raise ValueError("no values: there is no mean of nothing")
    if clusters is not None and len(clusters) != len(values):
        raise ValueError(f"{len(clusters)} clusters for {len(values)} values")
    gathered: dict[object, list[float]] = {}
    for index, value in enumerate(values):
        gathered.setdefault(index if clusters is None else clusters[index], []).append(float(value))
    return [np.asarray(group, dtype=np.float64) for group in gathered.values()]


def _percentiles(resampled: np.ndarray, estimate: float, count: int, confidence: float) -> Interval:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence lies between 0 and 1; got {confidence}")
    low, high = np.quantile(resampled, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(
        estimate=estimate,
        low=min(float(low), estimate),
        high=max(float(high), estimate),
        count=count,
        confidence=confidence,
    )
