"""Grades from 1 to 5 as what they are, an ordered scale: how much one arm raises the odds of a better grade, and how
many organisms the next evaluation needs. Needs statsmodels (extra `server`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np

from diffing_mcp.graders.statistics import Interval


def ordered_logit(
    first: Sequence[float], second: Sequence[float], clusters: Sequence[object], confidence: float = 0.95
) -> Interval | None:
    """Log odds ratio of a better grade in `first` than in `second`, both on the same cells, in a proportional-odds
    model (P. McCullagh, JRSS B 42, 1980) with standard errors clustered by `clusters` (one label a cell).

    None where the data cannot tell: all grades equal, all different (as many parameters as grades), or no grade of one
    arm below any of the other, where the likelihood grows without end with the odds ratio, and its curvature where a
    fit happens to stop means nothing.
    """
    from scipy.stats import norm
    from statsmodels.miscmodels.ordinal_model import OrderedModel

    grades = np.array([*first, *second])
    if len(first) != len(second) or len(first) != len(clusters):
        raise ValueError(f"need one cluster a pair; got {len(first)}, {len(second)} grades and {len(clusters)} labels")
    levels, codes = np.unique(grades, return_inverse=True)
    if (
        not 2 <= len(levels) < len(grades)
        or len(set(clusters)) < 2
        or min(first) >= max(second)
        or max(first) <= min(second)
    ):
        return None
    arm = np.repeat([1.0, 0.0], len(first))[:, None]
    labels = np.unique([str(label) for label in (*clusters, *clusters)], return_inverse=True)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that does not converge is found below by what it gives
        fitted = OrderedModel(codes, arm, distr="logit").fit(
            method="bfgs", disp=False, cov_type="cluster", cov_kwds={"groups": labels}
        )
    estimate, error = float(fitted.params[0]), float(fitted.bse[0])
    if not fitted.mle_retvals["converged"] or not math.isfinite(error) or error <= 0 or abs(estimate) > 20:
        return None
    reach = float(norm.ppf((1 + confidence) / 2)) * error
    return Interval(
        estimate=estimate, low=estimate - reach, high=estimate + reach, count=len(first), confidence=confidence
    )


def organisms_needed(differences: Sequence[float], power: float = 0.8, alpha: float = 0.05) -> int | None:
    """Organisms that a two-sided paired t-test needs to see a difference like this one, from one mean difference an
    organism. None for fewer than three organisms, no difference, or more than 10,000 needed.
    """
    from statsmodels.stats.power import TTestPower

    # Repeats that cancel out leave what rounding made of nothing.
    values = np.asarray(differences, dtype=np.float64).round(9)
    if len(values) < 3 or values.mean() == 0:
        return None
    spread = float(values.std(ddof=1))
    if spread == 0:
        return 3
    effect = abs(float(values.mean())) / spread
    if effect > 8:  # beyond what the solver can bracket; two organisms would do, three is the least for a spread
        return 3
    from scipy.stats import norm

    if (norm.ppf(1 - alpha / 2) + norm.ppf(power)) ** 2 > 10_000 * effect**2:  # the solver does not end there
        return None
    needed = TTestPower().solve_power(effect_size=effect, power=power, alpha=alpha, alternative="two-sided")
    needed = float(np.ravel(needed)[0])
    return max(3, math.ceil(needed)) if math.isfinite(needed) and needed <= 10_000 else None
