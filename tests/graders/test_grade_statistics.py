"""Intervals, rates and agreement against known values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffing_mcp.graders.statistics import (
    agreement,
    bootstrap_mean,
    bootstrap_paired_difference,
    clustered_rate,
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


def test_repeats_of_one_organism_have_an_interval_of_their_own() -> None:
    """A single organism was shown as known without error: 0.50 [0.50, 0.50]."""
    assert bootstrap_mean([0.0, 1.0] * 3, clusters=["a"] * 6) == bootstrap_mean([0.0, 1.0] * 3)
    paired = bootstrap_paired_difference([1, 5, 2], [1, 1, 1], clusters=["a"] * 3)
    assert paired.low < paired.estimate < paired.high


def test_repeats_do_not_narrow_a_rate_that_organisms_decide() -> None:
    organisms = [name for name in "abcdefgh" for _ in range(5)]
    never = clustered_rate([False] * 40, organisms)
    assert (never.low, never.high) == (0.0, wilson_interval(0, 8).high)
    by_organism = clustered_rate([name in "ab" for name in organisms], organisms)
    independent = clustered_rate([index % 4 == 0 for index in range(40)], organisms)
    assert by_organism.high - by_organism.low == pytest.approx(
        wilson_interval(2, 8).high - wilson_interval(2, 8).low, rel=0.1
    )
    assert independent == wilson_interval(10, 40)
    assert clustered_rate([True, False, True], "aaa") == wilson_interval(2, 3)
    assert clustered_rate([True, False, True], "abc") == wilson_interval(2, 3)
    with pytest.raises(ValueError, match="clusters"):
        clustered_rate([True], "ab")


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=1, max_size=30))
def test_a_clustered_rate_holds_its_estimate_and_is_no_narrower(found: list[tuple[bool, int]]) -> None:
    outcomes, clusters = [hit for hit, _ in found], [cluster for _, cluster in found]
    rate, plain = clustered_rate(outcomes, clusters), wilson_interval(sum(outcomes), len(outcomes))
    assert 0 <= rate.low <= rate.estimate <= rate.high <= 1
    assert rate.high - rate.low >= plain.high - plain.low - 1e-9


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
