"""The page "Detection": its tables and figures, of the calibration that ships and of none."""

from __future__ import annotations

import pytest

from diffing_mcp.cli import detection as markdown
from diffing_mcp.methods.calibration.detection_page import (
    ALL_METHODS,
    ReliabilityFigure,
    RocFigure,
    Table,
    parts_of,
)
from diffing_mcp.methods.calibration.readings import TOGETHER
from diffing_mcp.methods.calibration.schema import Calibration
from diffing_mcp.methods.calibration.store import bundled_calibrations
from diffing_mcp.ui.detection import no_calibration, part_html, reliability_figure, roc_figure, roc_legend


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return bundled_calibrations()[0]


def test_the_panel_shows_every_part_of_the_document(calibration: Calibration) -> None:
    written, shown, parts = markdown.page([calibration]), "", parts_of(calibration)
    for part in parts:
        if not isinstance(part, RocFigure | ReliabilityFigure):
            shown += part_html(part)
    tables = [part for part in parts if isinstance(part, Table)]
    assert shown.count("<table") == sum(line.startswith("| ---") for line in written.splitlines()) == len(tables)
    for row in tables[0].rows:
        assert row[0].strip("`") in shown
        assert f"| {row[1]} |" in written
    assert "`" not in shown
    assert "<code>kl</code>" in shown


def test_each_method_has_its_curve_and_the_stated_probabilities_theirs(calibration: Calibration) -> None:
    halves = [each.model_copy(update={"held_out": place % 2 == 1}) for place, each in enumerate(calibration.readings)]
    parts = parts_of(calibration.model_copy(update={"readings": halves}))
    [roc] = [part for part in parts if isinstance(part, RocFigure)]
    lines = roc_figure(roc)["data"]
    assert len(lines) == 1 + len(roc.rows)
    assert all((line["x"][0], line["y"][-1]) == (0, 1) for line in lines)
    looks = [(line["line"]["color"], line["line"]["dash"]) for line in lines]
    assert len(set(looks)) == len(looks), "two methods look alike"
    legend = roc_legend(roc)
    assert legend.count("<svg") == len(lines)
    for row in roc.rows:
        assert (
            f"{ALL_METHODS if row.method == TOGETHER else f'<code>{row.method}</code>'}<b>{row.area:.2f}</b>" in legend
        )
    [reliability] = [part for part in parts if isinstance(part, ReliabilityFigure)]
    points = reliability_figure(reliability)["data"][1]
    for (_, share), height, up, down in zip(
        reliability.bins, points["y"], points["error_y"]["array"], points["error_y"]["arrayminus"], strict=True
    ):
        assert height - down == pytest.approx(share.low)
        assert height + up == pytest.approx(share.high)


def test_a_statistic_of_a_newer_version_decides_nothing(calibration: Calibration) -> None:
    newer = calibration.model_copy(deep=True)
    for each in newer.readings:
        each.statistics["of_tomorrow: aspect"] = 1.0
    newer.params["of_tomorrow"] = {}
    judged = [part for part in parts_of(newer) if isinstance(part, Table)][-1]
    [row] = [row for row in judged.rows if row[0] == "`of_tomorrow: aspect`"]
    assert row[-1] == "no"


def test_without_taught_finetunes_and_without_a_calibration_it_says_so(calibration: Calibration) -> None:
    nulls = [each for each in calibration.readings if each.role == "null"]
    parts = parts_of(calibration.model_copy(update={"readings": nulls}))
    assert "No taught finetune has been measured yet" in str(parts[-1])
    assert not any(isinstance(part, Table) for part in parts)
    assert "diffing calibrate BASE --taught" in no_calibration()
