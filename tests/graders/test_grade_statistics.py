"""Intervals, rates and agreement against known values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffing_mcp.graders.statistics import (
    agreement,
    bootstrap_mean,
    bootstrap_paired_difference,
    false_positive_rate,
    wilson_interval,
)


def test_wilson_against_published_values() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3: 81/263 and 0/20 and 15/148.
    assert [round(value, 4) for value in (wilson_interval(81, 263).low, wilson_interval(81, 263).high)] == [
        0.2553,
        0.3662,
    ]
    assert [round(value, 4) for value in (wilson_interval(15, 148).low, wilson_interval(15, 148).high)] == [
        0.0624,
        0.1605,
    ]
    assert wilson_interval(0, 20).low == 0.0
    assert round(wilson_interval(0, 20).high, 4) == 0.1611


@given(st.integers(1, 300).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_wilson_holds_the_rate_and_is_symmetric(sample: tuple[int, int]) -> None:
    successes, count = sample
    interval = wilson_interval(successes, count)
    mirrored = wilson_interval(count - successes, count)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1
    assert interval.low == pytest.approx(1 - mirrored.high)


@pytest.mark.parametrize(("successes", "count", "confidence"), [(1, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)])
def test_wilson_refuses_nonsense(successes: int, count: int, confidence: float) -> None:
    with pytest.raises(ValueError):
        wilson_interval(successes, count, confidence)


@given(st.lists(st.integers(1, 5).map(float), min_size=1, max_size=30))
def test_bootstrap_holds_the_mean_and_repeats(values: list[float]) -> None:
    interval = bootstrap_mean(values, resamples=200, seed=3)
    assert min(values) <= interval.low <= interval.estimate <= interval.high <= max(values)
    assert interval.estimate == pytest.approx(sum(values) / len(values))
    assert interval == bootstrap_mean(values, resamples=200, seed=3)


def test_bootstrap_has_the_width_of_the_normal_interval() -> None:
    values = [1.0, 5.0] * 200
    interval = bootstrap_mean(values)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.1)


def test_repeats_of_one_organism_are_not_independent() -> None:
    values = [1.0] * 10 + [5.0] * 10
    groups = ["a"] * 10 + ["b"] * 10
    clustered = bootstrap_mean(values, clusters=groups)
    assert (clustered.low, clustered.high) == (1.0, 5.0)
    assert clustered.high - clustered.low > bootstrap_mean(values).high - bootstrap_mean(values).low
    with pytest.raises(ValueError, match="clusters"):
        bootstrap_mean(values, clusters=["a"])
    with pytest.raises(ValueError, match="no values"):
        bootstrap_mean([])


def test_paired_difference() -> None:
    interval = bootstrap_paired_difference([4, 5, 3, 4], [1, 2, 0, 1])
    assert (interval.low, interval.estimate, interval.high) == (3.0, 3.0, 3.0)
    with pytest.raises(ValueError, match="same length"):
        bootstrap_paired_difference([1], [1, 2])


def test_false_positive_rate() -> None:
    rate = false_positive_rate([True, False, False, False])
    assert rate is not None
    assert rate.estimate == 0.25
    assert rate.count == 4
    assert false_positive_rate([]) is None


def test_agreement() -> None:
    same = agreement([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])
    assert (same.exact, same.within_one, same.weighted_kappa) == (1.0, 1.0, 1.0)
    opposite = agreement([1, 5], [5, 1])
    assert opposite.weighted_kappa == pytest.approx(-1.0)
    # By hand: the gaps are 0, 1, 0, 2, whose mean square is 1.25.
    mixed = agreement([1, 2, 3, 3], [1, 3, 3, 1])
    assert (mixed.exact, mixed.within_one) == (0.5, 0.75)
    expected = sum((one - other) ** 2 for one in [1, 2, 3, 3] for other in [1, 3, 3, 1]) / 16
    assert mixed.weighted_kappa == pytest.approx(1 - 1.25 / expected)
    assert agreement([3, 3], [3, 3]).weighted_kappa is None
    with pytest.raises(ValueError, match="same length"):
        agreement([], [])
    with pytest.raises(ValueError, match="1 to 5"):
        agreement([0], [1])
