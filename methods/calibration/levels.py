"""How often a finetune that taught nothing would show as much: conformal p-values at the size of the change.

Statistics grow with the size of a change whatever was taught, so each is judged by its distance from a straight line of
log statistic on log size. Line and distances are computed over the nulls and the finetune in question together, none
singled out (full conformal prediction), so that the p-value is exact for a finetune that is exchangeable with the
nulls, and never below 1 / (n + 1). NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST_NULLS = 8
"""With fewer nulls no p-value below 0.11 is possible: there is no level."""
WANTED_P = 0.05
"""What a finding is usually asked for; it takes 19 nulls."""
LEAST_SPREAD = 0.3
"""Nulls that mostly list nothing have no spread to be judged by: at least a third, as a ratio of statistics. With less,
the first null that lists anything would be as far out as a taught finetune."""


@dataclass(frozen=True)
class Level:
    """Where one finetune lies among nulls.

    Attributes:
        p: share of finetunes that taught nothing with as much, at this size of change.
        deviations: distance above the line of the nulls, in their robust standard deviations.
        furthest: that of the null which lies furthest out.
        nulls: how many it rests on.
    """

    p: float
    deviations: float
    furthest: float
    nulls: int


def level(sizes: np.ndarray, values: np.ndarray, size: float, value: float) -> Level:
    """Level of one statistic.

    Args:
        sizes, values: [n] of the nulls, positive.
        size, value: of the finetune in question, positive.
    """
    distances = deviations(np.append(sizes, size), np.append(values, value)[:, None])[:, 0]
    return _of_the_last(distances)


def joint_level(
    sizes: np.ndarray, values: np.ndarray, size: float, value: np.ndarray, families: Sequence[str]
) -> Level:
    """One test of several statistics, taken together as `together` does. Nulls go through the same, so neither the
    number of families nor dependence between methods makes p too small.

    Args:
        sizes: [n] of the nulls; values: [n, m] of m statistics.
        value: [m].
        families: [m], see `together`.
    """
    distances = together(deviations(np.append(sizes, size), np.vstack([values, value])), families)
    return _of_the_last(distances)


def together(distances: np.ndarray, families: Sequence[str]) -> np.ndarray:
    """[n, m] deviations -> [n]: the mean of each family, those below the line counted as on it; of these the root of
    the summed squares, how far out a finetune lies in all places at once.

    A finetune that taught one thing shows in one place: a manner in the form of answers, a topic in words. The mean
    over everything hides the one among the others, their root of summed squares is never below it; the mean within a
    family wants two looks at the same place to agree.
    """
    above = np.clip(distances, 0.0, None)
    columns = [[place for place, name in enumerate(families) if name == family] for family in dict.fromkeys(families)]
    return np.asarray(np.linalg.norm([above[:, members].mean(axis=1) for members in columns], axis=0))


def deviations(sizes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Distance of every point above the Theil-Sen line of log statistic on log size (median of the slopes between all
    pairs of points, which one point far out hardly moves), in robust standard deviations.

    Args:
        sizes: [n]; values: [n, m], all positive.

    Returns:
        [n, m].
    """
    position, outcome = np.log(sizes), np.log(values)
    first, second = np.triu_indices(len(sizes), 1)
    apart = position[first] != position[second]
    first, second = first[apart], second[apart]
    rises = (outcome[first] - outcome[second]) / (position[first] - position[second])[:, None]
    slope = np.median(rises, axis=0) if len(rises) else np.zeros(outcome.shape[1])
    distance = outcome - position[:, None] * slope
    distance -= np.median(distance, axis=0)
    spread = 1.4826 * np.median(np.abs(distance), axis=0)
    return np.asarray(distance / np.maximum(spread, LEAST_SPREAD))


def _of_the_last(distances: np.ndarray) -> Level:
    """Level of the last point among the others."""
    return Level(rank_p(distances), float(distances[-1]), float(distances[:-1].max()), len(distances) - 1)


def needed_p(nulls: int) -> float:
    """The p that counts as seen: 0.05, or the least that so few nulls allow."""
    return max(WANTED_P, 1 / (nulls + 1))


def rank_p(distances: np.ndarray) -> float:
    """Share of all points, itself included, that lie at least as far out as the last one."""
    return float(np.mean(distances >= distances[-1] - 1e-12))
