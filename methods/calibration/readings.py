"""From finished runs to what a calibration keeps of them, and to what it says of them. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.calibration.levels import LEAST_NULLS, WANTED_P, Level, joint_level, level
from diffing_mcp.methods.calibration.probability import probability_of
from diffing_mcp.methods.calibration.schema import THIS_BASE, Calibration, LevelRow, Reading, Role
from diffing_mcp.methods.calibration.statistics import (
    families_of,
    family_of,
    label_of,
    size_of_change,
    statistics_of,
    unit_of,
)
from diffing_mcp.methods.calibration.store import base_of, bundled_calibrations, find_calibration, is_outdated
from diffing_mcp.methods.overview.plan import SIZE, label_of_run, method_of
from diffing_mcp.methods.registry import get_method
from diffing_mcp.organisms.nulls import TRAINED

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord, RunStore

TOGETHER = "together"
"""Stands for all methods as one test where a method's name is expected."""
_SHOWS_MORE = frozenset(("seed", "rows", "list_length", "examples"))
"""Parameters that a statistic does not depend on."""


def reading_of(
    records: Sequence[RunRecord],
    name: str,
    role: Role,
    kind: str,
    made_by: str = "",
    among: Collection[str] | None = None,
    **fields: Any,
) -> Reading | None:
    """What a calibration keeps of the runs on one finetune, or of it those statistics `among` some; None where the
    models differ in nothing.

    Raises:
        InvalidInput: no run of `kl` among them, which says how large the change is.
    """
    if all(record.manifest.method != SIZE for record in records):
        raise InvalidInput(f"A calibration needs a run of {SIZE}: it says how large the change is.")
    size = size_of_change(records)
    if size is None:
        return None
    by_label = {label_of_run(record.manifest): record for record in records}
    statistics = {name: value for record in by_label.values() for name, value in statistics_of(record, among).items()}
    return Reading(
        name=name,
        made_by=made_by,
        role=role,
        kind=kind,
        size=size,
        statistics={name: round(value, 4) for name, value in statistics.items()},
        stands_out={label: record.result().stands_out for label, record in by_label.items()},
        seconds={label: round(record.manifest.seconds, 1) for label, record in by_label.items()},
        **fields,
    )


def with_runs(known: Reading, records: Sequence[RunRecord], left_out: Sequence[str] = ()) -> Reading:
    """A reading with those of further runs on the same finetune, and what could not be run. What was measured stays:
    where a run is made anew for a statistic that it did not give, its sampled texts are others, and so are its numbers.
    """
    by_label = {label_of_run(record.manifest): record for record in records}
    added = {name: round(value, 4) for record in by_label.values() for name, value in statistics_of(record).items()}
    return known.model_copy(
        update={
            "statistics": {**added, **known.statistics},
            "stands_out": {**{key: run.result().stands_out for key, run in by_label.items()}, **known.stands_out},
            "seconds": {**{key: round(run.manifest.seconds, 1) for key, run in by_label.items()}, **known.seconds},
            "left_out": [*known.left_out, *left_out],
        }
    )


def kept_readings(calibration: Calibration, labels: Collection[str]) -> list[Reading]:
    """What a calibration knows by these methods on these texts; none where the size of the change is not among it."""
    if all(method_of(label) != SIZE for label in labels):
        return []

    def kept(values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if label_of(name) in labels}

    return [
        each.model_copy(
            update={
                **{field: kept(getattr(each, field)) for field in ("statistics", "stands_out", "seconds")},
                "left_out": [label for label in each.left_out if label in labels],
            }
        )
        for each in calibration.readings
    ]


def calibrated(records: Sequence[RunRecord]) -> list[LevelRow]:
    """How sure the findings of finished runs on one pair are: a row for each run that has a level, and first one for
    all of them as one test. Empty where nothing can be said: no run of `kl` among them, models that differ in nothing,
    no calibration of any base.
    """
    if not records:
        return []
    calibration, own = _calibration_of(records[0])
    if calibration is None:
        return []
    known = [record for record in records if label_of_run(record.manifest) in calibration.params]
    deciding: dict[str, RunRecord] = {}
    for record in _as_nulls_first(known, calibration):  # of several runs on one text
        deciding.setdefault(label_of_run(record.manifest), record)
    reading = _read(list(deciding.values()), calibration)
    if reading is None:
        return []
    source = THIS_BASE if own else f"another base, {calibration.base_name}"
    base = base_of(records[0].manifest.pair)
    remarks = [] if own or base is None else _of_own(base)
    sized = [record for record in deciding.values() if record.manifest.method == SIZE]
    rows = []
    for row in levels_of(reading, calibration, [TOGETHER]):
        counted = [record for label, record in deciding.items() if _counts(label, reading)]
        said = _read_otherwise(calibration, [*sized, *counted])
        rows.append(row.model_copy(update={"remarks": [*row.remarks, *said]}))
    for record in known:
        own_size = size_of_change([record])
        measured = {
            "statistics": statistics_of(record, _known(calibration)),
            "size": reading.size if own_size is None else own_size,
        }
        found = levels_of(reading.model_copy(update=measured), calibration, [label_of_run(record.manifest)])
        others = [] if record.manifest.method == SIZE else sized
        said = [*_own_otherwise(calibration, record), *_read_otherwise(calibration, others)]
        for row in found:
            rows.append(row.model_copy(update={"run": record.id, "remarks": [*row.remarks, *said]}))
    return [row.model_copy(update={"level_from": source, "remarks": [*row.remarks, *remarks]}) for row in rows]


def _of_own(base: Mapping[str, Any]) -> list[str]:
    """Why a calibration of this base that somebody made or began does not count."""
    if is_outdated(base):
        return ["the calibration of this base is of an older version: `diffing calibrate` reads it anew"]
    begun = find_calibration(base)
    if begun is None:
        return []
    return [
        f"the calibration of this base holds {_nulls(begun)} of the {LEAST_NULLS} nulls that a level needs: "
        "`diffing calibrate` goes on with it"
    ]


def _as_nulls_first(records: Sequence[RunRecord], calibration: Calibration) -> list[RunRecord]:
    """The same runs, those first that were read with the parameters that nulls were read with."""
    return sorted(records, key=lambda record: bool(_own_otherwise(calibration, record)))


def _counts(label: str, reading: Reading) -> bool:
    """Whether a method has a statistic that counts where all methods are one test."""
    return any(label_of(name) == label and family_of(name) for name in reading.statistics)


def level_of_run(record: RunRecord, store: RunStore) -> LevelRow | None:
    """How sure the finding of one run is; how large the change is, a stored run of `kl` on the same pair says, where it
    does not itself. None without one, and for methods that have no level.
    """
    sized = [record] if record.manifest.method == SIZE else [*_sizes_of(record, store)[:1], record]
    return next((row for row in calibrated(sized) if row.run == record.id), None)


def level_sentence(record: RunRecord, store: RunStore) -> str:
    """What to say of one run beside its own verdict: its level, or the call that gives it one. Empty where there is
    none to be had: a method that is not calibrated, or models that do not differ.
    """
    calibration, _ = _calibration_of(record)
    if calibration is None or label_of_run(record.manifest) not in calibration.params:
        return ""
    if (row := level_of_run(record, store)) is not None:
        return f"Level: {row.as_text()}."
    if record.manifest.method == SIZE or _sizes_of(record, store):
        return ""
    asked = next(params for label, params in calibration.params.items() if method_of(label) == SIZE)
    samples = asked["max_samples"]
    return f"For its calibrated level call {SIZE} with max_samples={samples} on this pair, then this again."


def _sizes_of(record: RunRecord, store: RunStore) -> list[RunRecord]:
    """Stored runs that say how large the change of its pair is, on the text of the calibration: those first that read
    as much of it, of these the newest.
    """
    calibration, _ = _calibration_of(record)
    if calibration is None:
        return []
    version = get_method(SIZE).version  # results of others may not be readable
    found = [
        store.get(manifest.id)
        for manifest in store.list(method=SIZE)
        if manifest.pair == record.manifest.pair
        and manifest.method_version == version
        and label_of_run(manifest) in calibration.params
    ]
    return _as_nulls_first(found, calibration)


def _calibration_of(record: RunRecord) -> tuple[Calibration | None, bool]:
    """What levels of a run on this pair come from, and whether that is its own base: one that was begun, and has too
    few nulls for any level yet, is none.
    """
    base = base_of(record.manifest.pair)
    own = find_calibration(base) if base is not None else None
    if own is not None and _nulls(own) >= LEAST_NULLS:
        return own, True
    return next(iter(bundled_calibrations()), None), False


def _nulls(calibration: Calibration) -> int:
    return sum(reading.role == "null" for reading in calibration.readings)


def _read(records: Sequence[RunRecord], calibration: Calibration) -> Reading | None:
    try:
        return reading_of(records, "", "null", "", among=_known(calibration))
    except InvalidInput:
        return None


def _known(calibration: Calibration) -> set[str]:
    """Statistics that any of its finetunes has: to read others, some of which take seconds, tells nothing."""
    return {name for reading in calibration.readings for name in reading.statistics}


def _read_otherwise(calibration: Calibration, records: Sequence[RunRecord]) -> list[str]:
    """What was different when the nulls were read, each with the runs that it is true of."""
    found: dict[str, list[str]] = {}
    for record in records:
        for remark in _own_otherwise(calibration, record):
            found.setdefault(remark, []).append(label_of_run(record.manifest))
    return [f"{remark} ({', '.join(labels)})" for remark, labels in found.items()]


def _own_otherwise(calibration: Calibration, record: RunRecord) -> list[str]:
    """What was different when the nulls were read by the method of this run."""
    manifest, label = record.manifest, label_of_run(record.manifest)
    measured, given = calibration.params[label], manifest.params
    if calibration.versions[label] != manifest.method_version:
        return ["nulls were read by another version of the method"]
    other = [
        f"{name}={measured[name]}"
        for name in measured
        if name not in _SHOWS_MORE and name in given and measured[name] != given[name]
    ]
    return [f"nulls were read with {', '.join(other)}"] if other else []


def levels_of(
    reading: Reading, calibration: Calibration, labels: Sequence[str], nulls: Sequence[Reading] | None = None
) -> list[LevelRow]:
    """Levels of one finetune.

    Args:
        labels: methods on their texts, or `TOGETHER`; those without enough nulls give no row.
        nulls: other nulls than all of the calibration's, to check what a level is worth.
    """
    nulls = [each for each in calibration.readings if each.role == "null"] if nulls is None else nulls
    rows = []
    for label in labels:
        used = judged(reading, label, nulls)
        known = [null for null in nulls if all(name in null.statistics for name in used)]
        if not used or len(known) < LEAST_NULLS:
            continue
        found = level_among(reading, known, used)
        rows.append(
            LevelRow(
                method=label,
                run=None,
                statistic=reading.statistics[used[0]] if len(used) == 1 else None,
                unit=unit_of(used[0])
                if len(used) == 1
                else f"deviations in {', '.join(dict.fromkeys(families_of(used)))}, root of summed squares",
                deviations=round(found.deviations, 2),
                furthest=round(found.furthest, 2),
                p=round(found.p, 4),
                probability=probability_of(reading, calibration, known, used),
                nulls=found.nulls,
                trained=sum(null.kind in TRAINED for null in known),
                level_from=calibration.base_name,
                remarks=[*_few(len(known)), *_beyond(reading.size, known)],
            )
        )
    return rows


def judged(reading: Reading, label: str, nulls: Sequence[Reading]) -> list[str]:
    """Names of the statistics that a verdict rests on: all of one method, or those that count together; only such as
    enough nulls have."""
    return [
        name
        for name in reading.statistics
        if (family_of(name) if label == TOGETHER else label_of(name) == label) and _complete(nulls, name)
    ]


def level_among(reading: Reading, nulls: Sequence[Reading], names: Sequence[str]) -> Level:
    """Level of one statistic, or of several as one test."""
    sizes = np.array([null.size for null in nulls])
    values = np.array([[null.statistics[name] for name in names] for null in nulls])
    value = np.array([reading.statistics[name] for name in names])
    if len(names) == 1:
        return level(sizes, values[:, 0], reading.size, float(value[0]))
    return joint_level(sizes, values, reading.size, value, families_of(names))


def _complete(nulls: Sequence[Reading], name: str) -> bool:
    """Whether so many nulls have a statistic that leaving out the others costs little."""
    known = sum(name in null.statistics for null in nulls)
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
