"""Conformal levels: exact where finetune and nulls are exchangeable, and honest about how few nulls there are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import theilslopes

from diffing_mcp.methods.calibration.detection import area, share
from diffing_mcp.methods.calibration.levels import deviations, joint_level, level, together


def sample(seed: int, count: int, statistics: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Sizes, and statistics that grow with them."""
    random = np.random.default_rng(seed)
    sizes = np.exp(random.normal(-2, 1.5, count))
    noise = random.standard_t(3, (count, statistics))
    return sizes, np.exp(0.4 * np.log(sizes)[:, None] + 0.3 * noise)


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.integers(8, 40), st.integers(1, 4), st.floats(0.02, 0.5))
def test_no_more_than_the_level_of_exchangeable_finetunes_is_below_it(
    seed: int, count: int, statistics: int, alpha: float
) -> None:
    """Each in turn is the finetune in question and the others are its nulls: at most alpha of all have p <= alpha."""
    sizes, values = sample(seed, count, statistics)
    found = []
    for place in range(count):
        others = np.arange(count) != place
        if statistics == 1:
            found.append(level(sizes[others], values[others, 0], sizes[place], values[place, 0]).p)
        else:
            families = [str(each % 2) for each in range(statistics)]
            found.append(joint_level(sizes[others], values[others], sizes[place], values[place], families).p)
    assert sum(p <= alpha for p in found) <= alpha * count + 1e-9
    assert min(found) >= 1 / count


def test_distances_are_those_of_scipys_robust_line() -> None:
    sizes, values = sample(3, 12)
    values **= 3  # wider than the least spread
    found = deviations(sizes, values)[:, 0]
    slope, *_ = theilslopes(np.log(values[:, 0]), np.log(sizes))
    distance = np.log(values[:, 0]) - slope * np.log(sizes)
    distance -= np.median(distance)
    np.testing.assert_allclose(found, distance / (1.4826 * np.median(np.abs(distance))), rtol=1e-8)


def test_one_finetune_far_out_does_not_hide_itself() -> None:
    """At the end of the range of sizes it would draw a line of least squares to itself."""
    sizes = np.geomspace(0.01, 1, 9)
    values = 2 * np.exp(np.tile([0.05, -0.05], 5)[:9])
    assert level(sizes, values, 1.5, 6.0).p == pytest.approx(1 / 10)


def test_together_families_add_up_and_the_members_of_one_have_to_agree() -> None:
    distances = np.array([[6.0, 0.0, 16.0], [0.0, 5.0, -9.0], [-1.0, -2.0, -3.0]])
    np.testing.assert_allclose(together(distances, ["form", "words", "words"]), [10.0, 2.5, 0.0])
    np.testing.assert_allclose(together(distances, ["form", "words", "other"]), [np.sqrt(292), 5.0, 0.0])
    distances = np.array([[4.0, 0.0, 9.0], [0.0, 5.0, -9.0], [-1.0, -2.0, -3.0]])
    np.testing.assert_allclose(together(distances, ["one"] * 3), [13 / 3, 5 / 3, 0.0])


def test_what_shows_in_one_place_alone_is_found() -> None:
    """A manner that no word tells: as far out as no null in one family, nowhere else. The mean over all missed it."""
    sizes, values = sample(4, 19, 6)
    value = np.exp(0.4 * np.log(0.1) * np.ones(6))
    value[2] *= 20
    families = ["words", "words", "form", "chats", "chats", "openings"]
    assert joint_level(sizes, values, 0.1, value, families).p == pytest.approx(1 / 20)


def test_what_shows_a_little_in_several_places_is_found() -> None:
    """Further out in three places than nulls mostly are, in none of them beyond the furthest null of that place."""
    sizes = np.full(19, 0.1)
    values = np.ones((19, 3))
    for place in range(3):
        values[place, place] = np.exp(0.9)
    found = joint_level(sizes, values, 0.1, np.exp(np.full(3, 0.8)), ["words", "form", "chats"])
    assert found.p == pytest.approx(1 / 20)


def test_changes_of_one_size_are_compared_as_they_are() -> None:
    assert level(np.full(9, 0.2), np.arange(1.0, 10.0), 0.2, 5.5).p == pytest.approx(5 / 10)


@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_units_do_not_matter(of_size: float, of_value: float) -> None:
    sizes, values = sample(5, 15)
    before = level(sizes, values[:, 0], 0.3, 2.0)
    after = level(of_size * sizes, of_value * values[:, 0], of_size * 0.3, of_value * 2.0)
    assert before.p == after.p
    assert before.deviations == pytest.approx(after.deviations, abs=1e-6)


def test_a_large_statistic_of_a_large_change_is_nothing_and_of_a_small_one_something() -> None:
    sizes = np.geomspace(0.001, 1, 19)
    values = sizes**0.5 * np.exp(np.tile([0.1, -0.1], 10)[:19])
    assert level(sizes, values, 0.9, 0.95).p > 0.3
    assert level(sizes, values, 0.01, 0.95).p == pytest.approx(1 / 20)


def test_nulls_that_list_nothing_give_no_certainty_of_their_own() -> None:
    found = level(np.geomspace(0.01, 1, 10), np.full(10, 4.5), 0.1, 4.5)
    assert (found.p, found.deviations) == (1.0, pytest.approx(0.0, abs=1e-9))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=15), st.lists(st.integers(0, 9), min_size=1, max_size=15))
def test_area_is_that_of_scikit_learn(taught: list[int], nulls: list[int]) -> None:
    from sklearn.metrics import roc_auc_score

    labels = [1] * len(taught) + [0] * len(nulls)
    assert area(taught, nulls) == pytest.approx(roc_auc_score(labels, [*taught, *nulls]))


def test_shares_have_exact_intervals() -> None:
    found = share(0, 20)
    assert (found.low, found.high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 20), abs=1e-3))
    assert share(0, 0).high == 1.0


def test_the_furthest_null_is_beyond_those_that_have_more() -> None:
    sizes, values = sample(5, 20)
    for value in (0.001, 1.0, 1000.0):
        found = level(sizes, values[:, 0], 0.1, value)
        assert (found.furthest < found.deviations - 1e-9) == (found.p == pytest.approx(1 / 21))
        assert found.nulls == 20
