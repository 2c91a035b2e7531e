"""What methods are worth, measured: on finetunes of known content, how well taught ones are told from nulls, at which
dilution each kind is first seen, and whether stated probabilities are right. Reads a calibration, no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, Field

from diffing_mcp.methods.calibration.levels import LEAST_NULLS, Level, needed_p
from diffing_mcp.methods.calibration.readings import TOGETHER, judged, level_among, levels_of
from diffing_mcp.methods.calibration.schema import Calibration, Reading


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
    roc: list[tuple[float, float]] = Field(
        description="Shares of nulls and of taught finetunes that lie beyond a threshold, from (0, 0) to (1, 1)."
    )

    def as_text(self) -> str:
        """One line."""
        return (
            f"{self.method}: area {self.area:.2f}, power {self.power.as_text()}, false positives "
            f"{self.false_positives.as_text()}"
        )


class Limit(BaseModel):
    """At which dilution a kind of taught finetune is seen."""

    name: str
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


def _level(reading: Reading, method: str, against: Sequence[Reading], least: int = LEAST_NULLS) -> Level | None:
    """Where a finetune lies among nulls, itself left out, by what was measured of it; None: too little was."""
    others = [null for null in against if null is not reading]
    used = judged(reading, method, others)
    known = [null for null in others if all(name in null.statistics for name in used)]
    return level_among(reading, known, used) if used and len(known) >= least else None


def _levels(readings: Sequence[Reading], method: str, against: Sequence[Reading]) -> list[Level]:
    return [found for each in readings if (found := _level(each, method, against)) is not None]


def _seen(level: Level) -> bool:
    return level.p <= needed_p(level.nulls) + 1e-9


def _detected(
    method: str,
    calibration: Calibration,
    nulls: Sequence[Reading],
    taught: Sequence[Reading],
    against: Sequence[Reading],
) -> MethodDetection | None:
    """Figures on those of `nulls` and `taught` that the method was run on, with levels from the nulls `against`."""
    of_nulls, of_taught = (_levels(each, method, against) for each in (nulls, taught))
    if not of_nulls or not of_taught:
        return None
    distances, further = ([found.deviations for found in each] for each in (of_nulls, of_taught))
    return MethodDetection(
        method=method,
        nulls=len(of_nulls),
        taught=len(of_taught),
        area=round(area(further, distances), 3),
        power=share(sum(map(_seen, of_taught)), len(of_taught)),
        false_positives=_false_positives(method, nulls, against),
        old_power=_own_verdicts(method, taught),
        old_false_positives=_own_verdicts(method, nulls),
        seconds=_seconds(method, [*nulls, *taught]),
        roc=roc(further, distances),
    )


def area(taught: Sequence[float], nulls: Sequence[float]) -> float:
    """Share of (taught, null) pairs in which the taught one lies further out; ties count half."""
    first, second = np.asarray(taught)[:, None], np.asarray(nulls)[None]
    return float((first > second).mean() + 0.5 * (first == second).mean())


def roc(taught: Sequence[float], nulls: Sequence[float]) -> list[tuple[float, float]]:
    """The curve whose area is `area`: for each threshold, the highest first, the shares of nulls and of taught
    finetunes that reach it.
    """
    first, second = np.asarray(taught), np.asarray(nulls)
    thresholds = sorted({*first.tolist(), *second.tolist()}, reverse=True)
    reached = [((second >= least).mean(), (first >= least).mean()) for least in thresholds]
    return [(0.0, 0.0), *((round(float(null), 3), round(float(found), 3)) for null, found in reached)]


def _false_positives(method: str, nulls: Sequence[Reading], against: Sequence[Reading]) -> Share:
    others = ((null, [other for other in against if other.kind != null.kind]) for null in nulls)
    levels = [found for null, kinds in others if (found := _level(null, method, kinds, least=2)) is not None]
    return share(sum(map(_seen, levels)), len(levels))


def _areas(nulls: Sequence[Reading], taught: Sequence[Reading]) -> dict[str, float]:
    """Of each statistic alone, on the finetunes of which it was measured."""
    found = {}
    for name in dict.fromkeys(name for each in [*nulls, *taught] for name in each.statistics):
        known = [null for null in nulls if name in null.statistics]
        further = [level_among(each, known, [name]).deviations for each in taught if name in each.statistics]
        if further and len(known) > LEAST_NULLS:
            distances = [
                level_among(each, [null for null in known if null is not each], [name]).deviations for each in known
            ]
            found[name] = round(area(further, distances), 3)
    return found


def _by_kind(nulls: Sequence[Reading]) -> dict[str, Share]:
    if len(nulls) < LEAST_NULLS:
        return {}
    kinds = dict.fromkeys(null.kind for null in nulls)
    return {kind: _false_positives(TOGETHER, [null for null in nulls if null.kind == kind], nulls) for kind in kinds}


def _own_verdicts(method: str, readings: Sequence[Reading]) -> Share | None:
    known = [each.stands_out[method] for each in readings if method in each.stands_out]
    return share(sum(known), len(known)) if known else None


def _seconds(method: str, readings: Sequence[Reading]) -> float | None:
    known = [each.seconds[method] for each in readings if method in each.seconds]
    return round(float(np.median(known)), 1) if known else None


def _limit(reading: Reading, calibration: Calibration, nulls: Sequence[Reading], methods: Sequence[str]) -> Limit:
    joint = next(iter(levels_of(reading, calibration, [TOGETHER], nulls)), None)
    alone = {method: _level(reading, method, nulls) for method in methods if method != TOGETHER}
    return Limit(
        name=reading.name,
        kind=reading.kind,
        dilution=reading.dilution,
        seen=[method for method, found in alone.items() if found is not None and _seen(found)],
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
