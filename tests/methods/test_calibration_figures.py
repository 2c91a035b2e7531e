"""Levels, probabilities and figures by calibrations that are invented."""

from __future__ import annotations

import numpy as np
import pytest

from diffing_mcp.methods.calibration.detection import detection
from diffing_mcp.methods.calibration.readings import (
    TOGETHER,
    levels_of,
)
from diffing_mcp.methods.calibration.schema import Reading
from tests.methods.invented_calibrations import ALSO_TELLING, TELLING, invented, made

pytestmark = pytest.mark.usefixtures("nothing_bundled")


def test_probabilities_are_bounded_by_what_was_measured_and_grow_with_the_finding() -> None:
    calibration = made(invented())
    weak, strong = (
        levels_of(
            Reading(
                name="x",
                made_by="x",
                role="null",
                kind="x",
                size=0.1,
                statistics={TELLING: value, ALSO_TELLING: value},
            ),
            calibration,
            [TOGETHER],
        )[0]
        for value in (2.5, 12.0)
    )
    assert weak.probability is not None
    assert strong.probability is not None
    assert 1 / 8 <= weak.probability < 0.5 < strong.probability <= round(25 / 26, 3)
    assert strong.p == pytest.approx(1 / 25, abs=1e-4)


def test_a_method_that_tells_nothing_says_so() -> None:
    found = [
        levels_of(reading, made(invented(power=0.3)), [TELLING])[0].probability
        for reading in invented(1, 1, power=20, seed=3)
    ]
    assert found == [0.5, 0.5]


def test_taught_finetunes_of_which_a_later_statistic_was_not_measured_still_give_the_curve() -> None:
    """They are judged by the others of that method, as nulls and levels are."""
    claims = f"{TELLING}: claims"

    def with_claims(reading: Reading, count: float) -> Reading:
        return reading.model_copy(update={"statistics": {**reading.statistics, claims: count}})

    before = invented()
    later = [with_claims(each, 1.0) if each.role == "null" else each for each in before]
    plain, telling = before[-1], with_claims(before[-1], 12.0)
    for label in (TOGETHER, TELLING):
        known = levels_of(plain, made(before), [label])[0].probability
        found = levels_of(telling, made(later), [label])[0].probability
        assert found is not None
        assert known is not None
        assert found >= known > 0.5
    without = [each for each in later if each.role == "null" or TELLING not in each.statistics]
    assert levels_of(telling, made(without), [TOGETHER])[0].probability is None


def test_without_taught_finetunes_of_this_base_those_of_a_bundled_one_give_the_curve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = made(invented(20, 0, seed=5), {"id": "b"})
    reading = invented(0, 1, seed=6)[0]
    assert levels_of(reading, alone, [TELLING])[0].probability is None
    monkeypatch.setattr(
        "diffing_mcp.methods.calibration.probability.bundled_calibrations", lambda: (made(invented(), {"id": "a"}),)
    )
    found = levels_of(reading, alone, [TELLING])[0].probability
    assert found is not None
    assert found > 0.7


def test_a_method_that_few_nulls_have_is_left_out_of_the_test_of_all() -> None:
    readings = invented(24, 8)
    few = [each.model_copy(update={"statistics": {TELLING: 1.0, ALSO_TELLING: 5.0}}) for each in readings[:12]]
    calibration = made([*few, *readings[12:]])
    [joint] = levels_of(readings[-1], calibration, [TOGETHER])
    assert (joint.unit, joint.nulls) == ("deviations in amplified words, words on texts, root of summed squares", 24)
    assert levels_of(readings[-1], calibration, ["pca"]) == []


def test_changes_beyond_all_nulls_are_remarked() -> None:
    calibration = made(invented())
    sizes = [reading.size for reading in calibration.readings if reading.role == "null"]
    for size, word in ((10 * max(sizes), "larger"), (min(sizes) / 10, "smaller"), (float(np.median(sizes)), None)):
        reading = Reading(name="x", made_by="x", role="null", kind="x", size=size, statistics={TELLING: 5.0})
        remarks = levels_of(reading, calibration, [TELLING])[0].remarks
        assert [word in remark for remark in remarks if word] == ([True] if word else [])


def test_few_nulls_and_few_taught_finetunes_are_said_to_be_few() -> None:
    reading = invented(0, 1)[0]
    few, enough = (
        levels_of(reading, made(invented(nulls, taught)), [TELLING])[0] for nulls, taught in ((9, 4), (19, 14))
    )
    assert few.remarks == ["so few nulls allow no p below 0.10"]
    assert few.probability is None
    assert enough.remarks == []
    assert enough.probability is not None


def test_figures_of_a_method_that_sees_and_of_one_that_does_not() -> None:
    figures = detection(made(invented(40, 20, power=4)))
    rows = {row.method: row for row in figures.rows}
    assert rows[TELLING].area > 0.95
    assert rows[TELLING].power.count >= 18
    assert 0.25 < rows["pca"].area < 0.75
    assert rows[TOGETHER].area > 0.95
    for row in figures.rows:
        nulls, taught = zip(*row.roc, strict=True)
        assert (row.roc[0], row.roc[-1]) == ((0, 0), (1, 1))
        assert np.trapezoid(taught, nulls) == pytest.approx(row.area, abs=0.01)
    assert all(row.false_positives.count <= 0.2 * row.nulls for row in figures.rows)
    assert {row.method for row in figures.held_out} == set(rows)
    assert sum(found.of for _, found in figures.reliability) == 30
    sure = dict(figures.reliability)["0.90 to 1.00"]
    assert sure.count >= 0.8 * sure.of
    assert {limit.kind for limit in figures.limits} == {"t0", "t1", "t2", "t3"}
    assert {name: round(value) for name, value in figures.statistics.items() if name != "pca"} == {
        TELLING: 1,
        ALSO_TELLING: 1,
    }
    assert set(figures.kinds) == {"n0", "n1", "n2", "n3"}
    assert sum(kind.count for kind in figures.kinds.values()) <= 0.2 * 40


def test_figures_without_taught_finetunes_are_empty() -> None:
    figures = detection(made(invented(12, 0)))
    assert (figures.rows, figures.held_out, figures.limits, figures.reliability) == ([], [], [], [])
