"""The one test of paired answers: would random swaps of the two models agree with one another as much? Torch-free.

Under the null that both models are the same, the two answers to a prompt could as well be swapped, so each prompt's
difference has a random sign. The p-values are exact for that null whatever the distribution, and those of many measures
at once are corrected together (Westfall and Young's step-down maximum), which knows how the measures go together.
"""

from __future__ import annotations

import numpy as np

MOST_ENUMERATED = 13
"""Prompts up to which every pattern of swaps is tried."""
RANDOM_PATTERNS = 9_999
_AT_ONCE = 1_000


def sign_patterns(units: int, seed: int = 0) -> np.ndarray:
    """Patterns of swaps [P, units] of +1 and -1, the observed one (all +1) first: all of them where they are few, else
    random ones.
    """
    if units <= MOST_ENUMERATED:
        # The statistic has no sign, so the first unit need not be flipped.
        flips = np.arange(2 ** max(0, units - 1))[:, None] >> np.arange(units)[None] & 1
        return np.where(flips, -1.0, 1.0)
    patterns = np.random.default_rng(seed).choice((1.0, -1.0), size=(RANDOM_PATTERNS + 1, units))
    patterns[0] = 1.0
    return patterns


def swap_p_values(differences: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """How surprising the mean differences are if both models are the same.

    Args:
        differences: finetuned minus base, a row a measure and a column a prompt [M, N]; NaN where a prompt says nothing
            of a measure.
        seed: of the random patterns of swaps.

    Returns:
        p-values of each measure alone [M], and corrected for all of them (familywise) [M]; two-sided.
    """
    values = np.nan_to_num(np.asarray(differences, dtype=float))
    measures, units = values.shape
    scale = np.sqrt((values**2).sum(axis=1))
    alone, corrected = np.ones(measures), np.ones(measures)
    varying = np.flatnonzero(scale > 0)
    if not len(varying):
        return alone, corrected
    unit_rows = values[varying] / scale[varying, None]
    observed = np.abs(unit_rows.sum(axis=1))
    order = np.argsort(-observed, kind="stable")
    unit_rows, observed = unit_rows[order], observed[order]
    patterns = sign_patterns(units, seed)
    above, above_max = np.zeros(len(order)), np.zeros(len(order))
    reached = observed - 1e-9  # equal sums differ by rounding
    for begin in range(0, len(patterns), _AT_ONCE):
        statistics = np.abs(patterns[begin : begin + _AT_ONCE] @ unit_rows.T)
        above += (statistics >= reached).sum(axis=0)
        # Step down: each measure competes with those that are no more surprising than itself.
        largest = np.maximum.accumulate(statistics[:, ::-1], axis=1)[:, ::-1]
        above_max += (largest >= reached).sum(axis=0)
    alone[varying[order]] = above / len(patterns)
    corrected[varying[order]] = np.maximum.accumulate(above_max / len(patterns))
    return alone, corrected
