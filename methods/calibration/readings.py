"""From finished runs to what a calibration keeps of them, and to what it says of them. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.calibration.levels import LEAST_NULLS, WANTED_P, Level, joint_level, level
from diffing_mcp.methods.calibration.probability import probability_of
from diffing_mcp.methods.calibration.schema import Calibration, LevelRow, Reading, Role
from diffing_mcp.methods.calibration.statistics import SIZE_METHOD, STATISTICS, size_of_change, statistic_of
from diffing_mcp.methods.calibration.store import base_of, bundled_calibrations, find_calibration

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord

TOGETHER = "together"
"""Stands for all methods as one test where a method's name is expected."""
_SHOWS_MORE = frozenset(("seed", "rows", "list_length", "examples"))
"""Parameters that a statistic does not depend on."""


def reading_of(
    records: Sequence[RunRecord], name: str, role: Role, kind: str, made_by: str = "", **fields: Any
) -> Reading | None:
    """What a calibration keeps of the runs on one finetune; None where the models differ in nothing.

    Raises:
        InvalidInput: no run of `kl` among them, which says how large the change is.
    """
    results = [(record.manifest.method, record.result()) for record in records]
    if all(method != SIZE_METHOD for method, _ in results):
        raise InvalidInput(f"A calibration needs a run of {SIZE_METHOD}: it says how large the change is.")
    size = size_of_change(results)
    if size is None:
        return None
    statistics = {method: value for method, result in results if (value := statistic_of(method, result)) is not None}
    return Reading(
        name=name,
        made_by=made_by,
        role=role,
        kind=kind,
        size=float(f"{size:.4g}"),
        statistics={method: round(value, 4) for method, value in statistics.items()},
        stands_out={method: result.stands_out for method, result in results},
        seconds={record.manifest.method: round(record.manifest.seconds, 1) for record in records},
        **fields,
    )


def calibrated(records: Sequence[RunRecord]) -> list[LevelRow]:
    """How sure the findings of finished runs on one pair are: a row for each method that has a level, and first one for
    all of them as one test. Empty where nothing can be said: no run of `kl` among them, models that differ in nothing,
    no calibration of any base.
    """
    if not records:
        return []
    base = base_of(records[0].manifest.pair)
    own = find_calibration(base) if base is not None else None
    calibration = own or next(iter(bundled_calibrations()), None)
    reading = None if calibration is None else _read(records)
    if calibration is None or reading is None:
        return []
    source = "this base" if own is not None else f"another base, {calibration.base_name}"
    rows = levels_of(reading, calibration, [TOGETHER])
    for record in records:
        method = record.manifest.method
        value = statistic_of(method, record.result())
        of_run = reading if value is None else reading.model_copy(update={"statistics": {method: value}})
        for row in levels_of(of_run, calibration, [method]):
            remarks = [*row.remarks, *_read_otherwise(calibration, record)]
            rows.append(row.model_copy(update={"run": record.id, "remarks": remarks}))
    return [row.model_copy(update={"level_from": source}) for row in rows]


def _read(records: Sequence[RunRecord]) -> Reading | None:
    try:
        return reading_of(records, "", "null", "")
    except InvalidInput:
        return None


def _read_otherwise(calibration: Calibration, record: RunRecord) -> list[str]:
    """What was different when the nulls were read."""
    manifest = record.manifest
    measured, given = calibration.params.get(manifest.method, {}), manifest.params
    if calibration.versions.get(manifest.method) != manifest.method_version:
        return ["nulls were read by another version of the method"]
    other = [
        f"{name}={measured[name]}"
        for name in measured
        if name not in _SHOWS_MORE and name in given and measured[name] != given[name]
    ]
    return [f"nulls were read with {', '.join(other)}"] if other else []


def levels_of(
    reading: Reading, calibration: Calibration, methods: Sequence[str], nulls: Sequence[Reading] | None = None
) -> list[LevelRow]:
    """Levels of one finetune.

    Args:
        methods: names, or `TOGETHER`; those without enough nulls give no row.
        nulls: other nulls than all of the calibration's, to check what a level is worth.
    """
    nulls = [each for each in calibration.readings if each.role == "null"] if nulls is None else nulls
    rows = []
    for method in methods:
        used = list(reading.statistics) if method == TOGETHER else [method]
        used = [name for name in used if name in reading.statistics and _complete(nulls, name)]
        known = [null for null in nulls if all(name in null.statistics for name in used)]
        if not used or len(known) < LEAST_NULLS or (method == TOGETHER and len(used) < 2):
            continue
        found = level_among(reading, known, used)
        unit = STATISTICS[method].unit if method != TOGETHER else f"mean deviation of {', '.join(used)}"
        rows.append(
            LevelRow(
                method=method,
                run=None,
                statistic=reading.statistics[method] if method != TOGETHER else None,
                unit=unit,
                deviations=round(found.deviations, 2),
                p=round(found.p, 4),
                probability=probability_of(reading, calibration, known, used),
                nulls=found.nulls,
                level_from=calibration.base_name,
                remarks=[*_few(len(known)), *_beyond(reading.size, known)],
            )
        )
    return rows


def level_among(reading: Reading, nulls: Sequence[Reading], methods: Sequence[str]) -> Level:
    """Level of one method, or of several as one test."""
    sizes = np.array([null.size for null in nulls])
    values = np.array([[null.statistics[name] for name in methods] for null in nulls])
    value = np.array([reading.statistics[name] for name in methods])
    if len(methods) == 1:
        return level(sizes, values[:, 0], reading.size, float(value[0]))
    return joint_level(sizes, values, reading.size, value)


def _complete(nulls: Sequence[Reading], method: str) -> bool:
    """Whether so many nulls have a method's statistic that leaving out the others costs little."""
    known = sum(method in null.statistics for null in nulls)
    return known >= max(LEAST_NULLS, 0.75 * len(nulls))


def _few(nulls: int) -> list[str]:
    least = 1 / (nulls + 1)
    return [f"so few nulls allow no p below {least:.2f}"] if least > WANTED_P + 1e-9 else []


def _beyond(size: float, nulls: Sequence[Reading]) -> list[str]:
    largest, smallest = max(null.size for null in nulls), min(null.size for null in nulls)
    if size > 1.5 * largest:
        return [f"this change is larger than that of any null ({size:.2g} against {largest:.2g} nats a token)"]
    if size < smallest / 1.5:
        return [f"this change is smaller than that of any null ({size:.2g} against {smallest:.2g} nats a token)"]
    return []
