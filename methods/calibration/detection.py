"""What methods are worth, measured: on finetunes of known content, how well taught ones are told from nulls, at which
dilution each kind is first seen, and whether stated probabilities are right. Reads a calibration, no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, Field

from diffing_mcp.methods.calibration.levels import LEAST_NULLS, deviations, needed_p, together
from diffing_mcp.methods.calibration.readings import TOGETHER, judged, level_among, levels_of
from diffing_mcp.methods.calibration.schema import Calibration, Reading
from diffing_mcp.methods.calibration.statistics import family_of


class Share(BaseModel):
    """A share with its exact (Clopper-Pearson) 95 % interval."""

    count: int
    of: int
    low: float
    high: float

    def as_text(self) -> str:
        """`3 of 4 (0.19 to 0.99)`."""
        return f"{self.count} of {self.of} ({self.low:.2f} to {self.high:.2f})"


class MethodDetection(BaseModel):
    """How well one method tells taught finetunes from nulls."""

    method: str
    nulls: int
    taught: int
    area: float = Field(description="Area under the ROC: a taught finetune lies further out than a null. 0.5: chance.")
    power: Share = Field(description="Taught finetunes with p at most 0.05, or beyond every null where those are few.")
    false_positives: Share = Field(
        description="Nulls with p at most 0.05 against the nulls of all other kinds: how the level holds on a new kind."
    )
    old_power: Share | None = Field(description="Taught finetunes that the method's own verdict finds.")
    old_false_positives: Share | None = Field(description="Nulls that the method's own verdict takes for taught.")
    seconds: float | None = Field(description="Median time of a run, where it was noted.")

    def as_text(self) -> str:
        """One line."""
        return (
            f"{self.method}: area {self.area:.2f}, power {self.power.as_text()}, false positives "
            f"{self.false_positives.as_text()}"
        )


class Limit(BaseModel):
    """At which dilution a kind of taught finetune is seen."""

    kind: str
    dilution: int = Field(description="Untouched documents to one taught.")
    seen: list[str] = Field(description="Methods with a p at most 0.05, or beyond every null where those are few.")
    p: float = Field(description="Of all methods as one test.")
    probability: float | None
    held_out: bool


class Detection(BaseModel):
    """The figures of one calibration."""

    base_name: str
    nulls: dict[str, int] = Field(description="By kind.")
    rows: list[MethodDetection]
    held_out: list[MethodDetection] = Field(
        description="The same on finetunes set aside, with levels and curve from the others alone."
    )
    statistics: dict[str, float] = Field(description="Area of each statistic alone.")
    kinds: dict[str, Share] = Field(
        description="Kind of null -> those that all methods as one test find, judged by nulls of other kinds."
    )
    limits: list[Limit]
    reliability: list[tuple[str, Share]] = Field(
        description="Stated probability -> share of those finetunes that were taught, of the held-out ones."
    )

    def as_text(self) -> str:
        """A line each."""
        lines = [f"{self.base_name}: nulls {', '.join(f'{count} {kind}' for kind, count in self.nulls.items())}"]
        lines += [row.as_text() for row in self.rows]
        lines += [f"set aside: {row.as_text()}" for row in self.held_out]
        for each in self.limits:
            seen = ", ".join(each.seen) or "none"
            lines.append(f"{each.kind} 1:{each.dilution}: p {each.p:.3f} of all methods as one test; seen by {seen}")
        lines += [f"stated {stated}: taught {found.as_text()}" for stated, found in self.reliability]
        return "\n".join(lines)


def detection(calibration: Calibration) -> Detection:
    """All figures; empty parts where no taught finetune was measured."""
    nulls, taught = _by_role(calibration, "null"), _by_role(calibration, "taught")
    methods = [TOGETHER, *calibration.params]
    aside = [[each for each in group if each.held_out] for group in (nulls, taught)]
    chosen = [each for each in nulls if not each.held_out]
    return Detection(
        base_name=calibration.base_name,
        nulls={kind: sum(null.kind == kind for null in nulls) for kind in dict.fromkeys(null.kind for null in nulls)},
        rows=[row for method in methods if (row := _detected(method, calibration, nulls, taught, nulls))],
        held_out=[row for method in methods if (row := _detected(method, calibration, aside[0], aside[1], chosen))],
        statistics=_areas(nulls, taught),
        kinds=_by_kind(nulls),
        limits=[_limit(each, calibration, nulls, methods) for each in taught],
        reliability=_reliability(calibration, chosen, aside),
    )


def share(count: int, of: int) -> Share:
    """With its interval; 0 to 1 of nothing."""
    from scipy.stats import binomtest

    if not of:
        return Share(count=0, of=0, low=0.0, high=1.0)
    interval = binomtest(count, of).proportion_ci(method="exact")
    return Share(count=count, of=of, low=round(float(interval.low), 3), high=round(float(interval.high), 3))


def _by_role(calibration: Calibration, role: str) -> list[Reading]:
    return [each for each in calibration.readings if each.role == role]


def _used(method: str, readings: Sequence[Reading], nulls: Sequence[Reading]) -> list[str]:
    """The statistics that all of these readings have."""
    return [name for name in judged(readings[0], method, nulls) if all(name in each.statistics for each in readings)]


def _detected(
    method: str,
    calibration: Calibration,
    nulls: Sequence[Reading],
    taught: Sequence[Reading],
    against: Sequence[Reading],
) -> MethodDetection | None:
    """Figures on `nulls` and `taught`, with levels from the nulls `against`."""
    if not nulls or not taught or len(against) < LEAST_NULLS:
        return None
    used = _used(method, [*nulls, *taught, *against], against)
    if not used:
        return None
    needed = needed_p(len(against))
    of_taught = [level_among(each, against, used) for each in taught]
    if nulls is against:
        distances = list(_distances(against, used))
    else:
        distances = [level_among(each, against, used).deviations for each in nulls]
    return MethodDetection(
        method=method,
        nulls=len(nulls),
        taught=len(taught),
        area=round(area([found.deviations for found in of_taught], distances), 3),
        power=share(sum(found.p <= needed + 1e-9 for found in of_taught), len(taught)),
        false_positives=_false_positives(nulls, against, used),
        old_power=_own_verdicts(method, taught),
        old_false_positives=_own_verdicts(method, nulls),
        seconds=_seconds(method, [*nulls, *taught]),
    )


def _distances(nulls: Sequence[Reading], used: Sequence[str]) -> np.ndarray:
    found = deviations(
        np.array([null.size for null in nulls]),
        np.array([[null.statistics[name] for name in used] for null in nulls]),
    )
    return found[:, 0] if len(used) == 1 else together(found, [family_of(name) or name for name in used])


def area(taught: Sequence[float], nulls: Sequence[float]) -> float:
    """Share of (taught, null) pairs in which the taught one lies further out; ties count half."""
    first, second = np.asarray(taught)[:, None], np.asarray(nulls)[None]
    return float((first > second).mean() + 0.5 * (first == second).mean())


def _false_positives(nulls: Sequence[Reading], against: Sequence[Reading], used: Sequence[str]) -> Share:
    found = 0
    for null in nulls:
        others = [other for other in against if other.kind != null.kind]
        if len(others) > 1:
            found += level_among(null, others, used).p <= needed_p(len(others)) + 1e-9
    return share(found, len(nulls))


def _areas(nulls: Sequence[Reading], taught: Sequence[Reading]) -> dict[str, float]:
    """Of each statistic that all readings have, alone."""
    if not taught or len(nulls) < LEAST_NULLS:
        return {}
    every = [*nulls, *taught]
    names = [name for name in every[0].statistics if all(name in each.statistics for each in every)]
    return {
        name: round(
            area([level_among(each, nulls, [name]).deviations for each in taught], list(_distances(nulls, [name]))), 3
        )
        for name in names
    }


def _by_kind(nulls: Sequence[Reading]) -> dict[str, Share]:
    used = _used(TOGETHER, nulls, nulls) if len(nulls) >= LEAST_NULLS else []
    if not used:
        return {}
    kinds = dict.fromkeys(null.kind for null in nulls)
    return {kind: _false_positives([null for null in nulls if null.kind == kind], nulls, used) for kind in kinds}


def _own_verdicts(method: str, readings: Sequence[Reading]) -> Share | None:
    known = [each.stands_out[method] for each in readings if method in each.stands_out]
    return share(sum(known), len(known)) if known else None


def _seconds(method: str, readings: Sequence[Reading]) -> float | None:
    known = [each.seconds[method] for each in readings if method in each.seconds]
    return round(float(np.median(known)), 1) if known else None


def _limit(reading: Reading, calibration: Calibration, nulls: Sequence[Reading], methods: Sequence[str]) -> Limit:
    rows = levels_of(reading, calibration, methods, nulls)
    joint = next((row for row in rows if row.method == TOGETHER), None)
    return Limit(
        kind=reading.kind,
        dilution=reading.dilution,
        seen=[row.method for row in rows if row.method != TOGETHER and row.p <= needed_p(row.nulls) + 1e-4],
        p=joint.p if joint else 1.0,
        probability=joint.probability if joint else None,
        held_out=reading.held_out,
    )


_BINS = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 0.9), (0.9, 1.0))


def _reliability(
    calibration: Calibration, chosen: Sequence[Reading], aside: Sequence[Sequence[Reading]]
) -> list[tuple[str, Share]]:
    stated: list[tuple[float, bool]] = []
    for readings, was_taught in zip(aside, (False, True), strict=True):
        for reading in readings:
            for row in levels_of(reading, calibration, [TOGETHER], chosen):
                if row.probability is not None:
                    stated.append((row.probability, was_taught))
    bins = []
    for low, high in _BINS:
        inside = [was_taught for value, was_taught in stated if low <= value < high or value == high == 1.0]
        if inside:
            bins.append((f"{low:.2f} to {high:.2f}", share(sum(inside), len(inside))))
    return bins
