"""Inspect metrics with intervals: means by bootstrap over organisms, rates by Wilson. Samples to which a value does not
apply are left out.
"""

from __future__ import annotations

from math import nan

from inspect_ai.scorer import Metric, SampleScore, Value, metric

from diffing_mcp.graders.statistics import Interval, bootstrap_mean, wilson_interval


def _applicable(scores: list[SampleScore]) -> list[tuple[float, str]]:
    return [
        (float(item.score.value), str((item.sample_metadata or {}).get("organism", item.sample_id)))
        for item in scores
        if isinstance(item.score.value, int | float)
    ]


def _value(interval: Interval | None) -> Value:
    if interval is None:
        # Inspect takes numbers only; NaN says that no sample has such a value.
        return {"estimate": nan, "low": nan, "high": nan, "count": 0}
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high, "count": interval.count}


@metric
def mean_interval() -> Metric:
    """Mean with a 95% bootstrap interval; organisms are resampled as wholes."""

    def measure(scores: list[SampleScore]) -> Value:
        values = _applicable(scores)
        return _value(
            bootstrap_mean([value for value, _ in values], clusters=[organism for _, organism in values])
            if values
            else None
        )

    return measure


@metric
def rate_interval() -> Metric:
    """Rate of ones with a 95% Wilson interval."""

    def measure(scores: list[SampleScore]) -> Value:
        values = [value for value, _ in _applicable(scores)]
        return _value(wilson_interval(sum(value >= 0.5 for value in values), len(values)) if values else None)

    return measure


METRICS: dict[str, list[Metric]] = {
    "grade": [mean_interval()],
    "fact_recall": [mean_interval()],
    "topic_named": [rate_interval()],
    "verdict_correct": [rate_interval()],
    "false_positive": [rate_interval()],
}
