"""Rates and means over prompts: p-values, intervals, and what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from diffing_mcp.queries.prompt_statistics import FEWEST_PROMPTS, apart_p, mean_difference, rate_difference

counts = st.integers(1, 6).flatmap(
    lambda samples: st.tuples(
        st.just(samples),
        st.lists(st.tuples(st.integers(0, samples), st.integers(0, samples)), min_size=1, max_size=12),
    )
)


@given(counts)
def test_a_difference_lies_in_its_interval_and_turns_with_the_sides(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    samples, pairs = drawn
    base, finetuned = (list(side) for side in zip(*pairs, strict=True))
    found, turned = rate_difference(base, finetuned, samples), rate_difference(finetuned, base, samples)
    assert -1 <= found.low <= found.difference + 1e-9
    assert found.difference - 1e-9 <= found.high <= 1
    assert found.difference == pytest.approx((sum(finetuned) - sum(base)) / (samples * len(pairs)))
    assert turned.difference == pytest.approx(-found.difference)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    assert 0 < found.p <= 1
    assert turned.p == pytest.approx(found.p)


@given(st.integers(1, 6), st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_equal_answers_are_no_difference(samples: int, hits: list[int]) -> None:
    hits = [min(samples, each) for each in hits]
    found = rate_difference(hits, hits, samples)
    assert (found.difference, found.p, found.p_answers) == (0.0, 1.0, 1.0)
    assert found.low <= 0 <= found.high


def test_the_p_value_is_that_of_all_swaps() -> None:
    # Six prompts that all rise: only the observed signs and their mirror are as extreme.
    found = rate_difference([0] * 6, [3, 3, 3, 2, 4, 3], 4)
    assert found.p == pytest.approx(2 / 2**6)
    assert found.p_answers == pytest.approx(stats.fisher_exact([[18, 6], [0, 24]]).pvalue)
    assert rate_difference([0] * (FEWEST_PROMPTS - 1), [4] * (FEWEST_PROMPTS - 1), 4).p > 0.05


def test_one_answer_a_prompt_has_newcombes_interval() -> None:
    base, finetuned = [1] * 42 + [0] * 28, [0, 1, 1, 1, 1] * 14
    found = rate_difference(base, finetuned, 1)
    (low, high), (lower, higher) = (stats.binomtest(hits, 70).proportion_ci(method="wilson") for hits in (56, 42))
    p, q = 56 / 70, 42 / 70
    assert found.low == pytest.approx(p - q - np.hypot(p - low, higher - q))
    assert found.high == pytest.approx(p - q + np.hypot(high - p, q - lower))


def test_answers_that_all_agree_count_as_one_a_prompt() -> None:
    """Nothing can be known of how answers go together, so six prompts are six answers."""
    found = rate_difference([0] * 6, [4] * 6, 4)
    one = rate_difference([0] * 6, [1] * 6, 1)
    assert (found.low, found.high) == (one.low, one.high)


def test_answers_that_go_together_count_less() -> None:
    together = rate_difference([0] * 12, [4] * 6 + [0] * 6, 4)
    apart = rate_difference([0] * 12, [2] * 12, 4)
    assert together.difference == apart.difference
    assert together.high - together.low > 1.3 * (apart.high - apart.low)


@pytest.mark.parametrize(("prompts", "samples"), [(8, 4), (24, 1), (24, 4)])
@pytest.mark.parametrize(("low_rate", "high_rate", "spread"), [(0.05, 0.7, 0.3), (0.5, 0.5, 0.8), (0.3, 0.6, 0.05)])
def test_intervals_cover_the_true_difference(
    prompts: int, samples: int, low_rate: float, high_rate: float, spread: float
) -> None:
    """Answers of a prompt share a rate drawn from a beta distribution with the intraclass correlation `spread`."""
    random, size, covered = np.random.default_rng(7), (1 - spread) / spread, 0
    trials = 100
    for _ in range(trials):
        base, finetuned = (
            random.binomial(samples, random.beta(rate * size, (1 - rate) * size, prompts))
            for rate in (low_rate, high_rate)
        )
        found = rate_difference(base.tolist(), finetuned.tolist(), samples)
        covered += found.low <= high_rate - low_rate <= found.high
    assert covered / trials >= 0.91  # 95 %, less what 100 trials and few prompts lose


def test_equal_models_are_called_different_as_often_as_promised() -> None:
    random, called = np.random.default_rng(3), 0
    for _ in range(300):
        rates = random.beta(1, 2, 10)
        base, finetuned = random.binomial(4, rates), random.binomial(4, rates)
        called += rate_difference(base.tolist(), finetuned.tolist(), 4).p < 0.05
    assert called / 300 <= 0.08


def test_means_have_students_interval() -> None:
    base, finetuned = [-5.0, -6.0, -4.0, -5.5, -7.0, -6.5], [-2.0, -3.5, -1.0, -2.0, -3.0, -4.0]
    found = mean_difference(base, finetuned)
    expected = stats.ttest_rel(finetuned, base).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.p == pytest.approx(2 / 2**6)
    assert mean_difference([1.0], [2.0]).low is None
    assert mean_difference(base, base).p == 1.0


def test_two_sets_of_prompts_are_told_apart_as_by_scipy() -> None:
    random = np.random.default_rng(3)
    for sizes in ((8, 6), (4, 9), (2, 3), (20, 20)):
        changes, others = random.normal(0.7, 1, sizes[0]), random.normal(0, 1, sizes[1])
        expected = stats.permutation_test(
            (changes, others), lambda a, b: abs(a.mean() - b.mean()), alternative="greater", n_resamples=9_999
        ).pvalue
        assert apart_p(changes, others) == pytest.approx(expected, abs=1e-9 if sum(sizes) < 20 else 0.02)
    assert apart_p([1.0, 1.0], [1.0, 1.0, 1.0]) == 1.0
    assert apart_p([5.0] * 8, [0.0] * 6) == pytest.approx(1 / 3003)
