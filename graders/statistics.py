"""Statistics of grades: intervals, rates, and how far graders agree.
Deterministic: whatever is resampled takes a seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, Field
from scipy.stats import bootstrap, norm
from sklearn.metrics import cohen_kappa_score


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
    low, high = _wilson(successes / count, count, confidence)
    return _interval(successes / count, low, high, count, confidence)


def clustered_rate(outcomes: Sequence[bool], clusters: Sequence[object], confidence: float = 0.95) -> Interval:
    """Wilson's interval of a rate whose outcomes come in groups, such as repeats on one organism: at the number of
    independent outcomes that would be known as well (L. Kish, Survey Sampling, 1965). Rates of 0 and 1 do not show how
    alike the outcomes of a group are; there each group counts as one. Outcomes of a single group count by themselves:
    the interval speaks of that group alone.

    Raises ValueError for no outcomes, or clusters of another length.
    """
    hits, sizes = _groups([float(outcome) for outcome in outcomes], clusters)
    groups, count = len(sizes), int(sizes.sum())
    rate = float(hits.sum() / count)
    if groups == 1:
        return wilson_interval(int(hits.sum()), count, confidence)
    worth = float(groups)
    if 0 < rate < 1:
        variance = groups / (groups - 1) * float(((hits - rate * sizes) ** 2).sum()) / count**2
        worth = min(float(count), max(worth, rate * (1 - rate) / variance)) if variance > 0 else float(count)
    low, high = _wilson(rate, worth, confidence)
    return _interval(rate, low, high, count, confidence)


def bootstrap_mean(
    values: Sequence[float],
    *,
    clusters: Sequence[object] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a mean; the mean itself where there is one value.

    Args:
        values: one grade each.
        clusters: group of each value, such as the organism; then whole groups are resampled, since repeats on one
            organism are not independent. Values of a single group are resampled one by one: the interval speaks of
            that group alone.

    Raises ValueError for no values, clusters of another length, or a confidence that is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence lies between 0 and 1; got {confidence}")
    sums, sizes = _groups(values, clusters)
    if len(sums) == 1:
        sums, sizes = _groups(values, None)
    estimate = float(sums.sum() / sizes.sum())
    if len(sums) == 1:
        return _interval(estimate, estimate, estimate, len(values), confidence)
    found = bootstrap(
        (sums, sizes),
        lambda total, size, axis: total.sum(axis=axis) / size.sum(axis=axis),
        paired=True,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return _interval(estimate, found.low, found.high, len(values), confidence)


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


def agreement(first: Sequence[int], second: Sequence[int], levels: int = 5) -> Agreement:
    """Agreement of two graders (or two readings) on the same findings, scores 1 to `levels`.

    Kappa with quadratic weights: J. Cohen, Psychological Bulletin 70 (1968).
    Raises ValueError for series that are empty, unequal in length or out of range.
    """
    if not first or len(first) != len(second):
        raise ValueError(f"need two series of the same length >= 1; got {len(first)} and {len(second)}")
    if any(not 1 <= score <= levels for score in (*first, *second)):
        raise ValueError(f"scores are whole numbers from 1 to {levels}")
    gap = np.abs(np.subtract(first, second))
    constant = len({*first, *second}) == 1
    kappa = None if constant else cohen_kappa_score(first, second, labels=range(1, levels + 1), weights="quadratic")
    return Agreement(
        exact=float((gap == 0).mean()), within_one=float((gap <= 1).mean()), weighted_kappa=kappa, count=len(first)
    )


def _wilson(rate: float, count: float, confidence: float) -> tuple[float, float]:
    """Bounds of Wilson's interval."""
    z = float(norm.ppf((1 + confidence) / 2))
    share = 1 + z**2 / count
    middle = (rate + z**2 / (2 * count)) / share
    reach = z / share * float(np.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2)))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def _groups(values: Sequence[float], clusters: Sequence[object] | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of each cluster, two arrays [clusters]."""
    if not values:
        raise ValueError("no values: there is no mean of nothing")
    if clusters is not None and len(clusters) != len(values):
        raise ValueError(f"{len(clusters)} clusters for {len(values)} values")
    gathered: dict[object, list[float]] = {}
    for index, value in enumerate(values):
        gathered.setdefault(index if clusters is None else clusters[index], []).append(float(value))
    groups = gathered.values()
    return np.array([sum(group) for group in groups]), np.array([len(group) for group in groups], dtype=np.float64)


def _interval(estimate: float, low: float, high: float, count: int, confidence: float) -> Interval:
    """An interval that holds its estimate: rounding may put a bound past it."""
    return Interval(
        estimate=estimate,
        low=min(float(low), estimate),
        high=max(float(high), estimate),
        count=count,
        confidence=confidence,
    )
