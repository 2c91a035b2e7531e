"""From deviations to a probability that something was taught: logistic regression between nulls and taught finetunes
that are not held out (Platt scaling), both sides weighing the same. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from diffing_mcp.methods.calibration.levels import LEAST_NULLS, deviations, together
from diffing_mcp.methods.calibration.schema import Calibration, Reading
from diffing_mcp.methods.calibration.statistics import families_of, label_of
from diffing_mcp.methods.calibration.store import bundled_calibrations

LEAST_TAUGHT = 5
"""A curve through fewer taught finetunes is none."""
_FURTHEST = 10.0
"""Deviations beyond this tell no more, so that one finetune cannot bend the curve of all."""


def probability_of(
    reading: Reading, calibration: Calibration, nulls: Sequence[Reading], methods: Sequence[str]
) -> float | None:
    """Probability that a finetune with this reading was taught something, were that as likely as not beforehand.

    Taught finetunes are those of the calibration, else of a bundled one, whose deviations are from its own nulls; each
    by what was measured of it, which a statistic that its method was given since may not be. The answer never leaves
    1 / (taught + 2) to (nulls + 1) / (nulls + 2): no more can be known from so many. None where fewer than
    `LEAST_TAUGHT` taught finetunes were measured with these methods.
    """
    from sklearn.linear_model import LogisticRegression

    for source, source_nulls in _sources(calibration, nulls):
        taught = [each for each in source.readings if each.role == "taught" and not each.held_out]
        taught = [each for each in taught if _labels(methods) <= _labels(each.statistics)]
        known = [null for null in source_nulls if all(name in null.statistics for name in methods)]
        if len(taught) >= LEAST_TAUGHT and len(known) >= LEAST_NULLS:
            break
    else:
        return None
    of_taught = [_scores(known, [each], [name for name in methods if name in each.statistics])[-1:] for each in taught]
    scores = [_scores(known, known[:0], methods), *of_taught]
    labels = [0] * len(known) + [1] * len(taught)
    curve = LogisticRegression(class_weight="balanced").fit(np.concatenate(scores)[:, None], labels)
    if curve.coef_[0, 0] <= 0:  # taught finetunes lie no further out than nulls: the method tells nothing
        return 0.5
    found = float(curve.predict_proba(_scores(nulls, [reading], methods)[-1:, None])[0, 1])
    return round(min(max(found, 1 / (len(taught) + 2)), (len(nulls) + 1) / (len(nulls) + 2)), 3)


def _labels(names: Iterable[str]) -> set[str]:
    """The methods on their texts that these statistics are of."""
    return {label_of(name) for name in names}


def _sources(calibration: Calibration, nulls: Sequence[Reading]) -> list[tuple[Calibration, Sequence[Reading]]]:
    others = [(each, [r for r in each.readings if r.role == "null"]) for each in bundled_calibrations()]
    return [(calibration, nulls), *(pair for pair in others if pair[0].base != calibration.base)]


def _scores(nulls: Sequence[Reading], others: Sequence[Reading], methods: Sequence[str]) -> np.ndarray:
    """Distances above the nulls' line, of all of these together; [nulls + others]."""
    every = [*nulls, *others]
    values = np.array([[each.statistics[name] for name in methods] for each in every])
    distances = deviations(np.array([each.size for each in every]), values)
    if len(methods) > 1:
        distances = together(distances, families_of(methods))[:, None]
    return np.clip(distances[:, 0], -_FURTHEST, _FURTHEST)
