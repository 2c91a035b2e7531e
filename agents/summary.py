"""What the records of an evaluation add up to: one row for each organism and arm, and the rates over all of them, with
intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from pydantic import BaseModel, Field

from diffing_mcp.agents.arms import Arm
from diffing_mcp.agents.intervals import WORDS, mean_of, rate_of, shown
from diffing_mcp.agents.records import EvaluationRecord
from diffing_mcp.graders.statistics import Interval, bootstrap_paired_difference


class Row(BaseModel):
    """One organism (or all of them) in one arm."""

    organism: str
    arm: Arm
    null: bool
    completed: int
    failed: int
    grade: Interval | None = Field(description="LLM grader, 1-5, mean over findings (each the mean of its readings).")
    fact_score: Interval | None = Field(description="Deterministic grade, 1-5.")
    fact_recall: Interval | None = Field(description="Share of facts; None on nulls.")
    topic_named: Interval | None = Field(description="Rate; None on nulls.")
    verdict_correct: Interval | None
    verdicts: dict[str, int]
    interactions: float | None = Field(description="Mean model interactions used.")
    tool_calls: float | None = Field(description="Mean tool calls made.")
    seconds: float | None = Field(description="Mean wall-clock seconds.")

    def cells(self) -> list[str]:
        """The row as texts, in the order of `Summary.columns`."""
        verdicts = ", ".join(f"{verdict.replace('_', ' ')} {count}" for verdict, count in self.verdicts.items())
        return [
            self.organism + (" (null)" if self.null else ""),
            self.arm,
            f"{self.completed}" + (f" ({self.failed} failed)" if self.failed else ""),
            shown(self.grade),
            shown(self.fact_score),
            shown(self.fact_recall),
            shown(self.topic_named),
            verdicts,
            shown(self.verdict_correct),
            _number(self.tool_calls),
            _number(self.interactions),
            _number(self.seconds),
        ]


class ArmSummary(BaseModel):
    """All organisms of one arm."""

    arm: Arm
    grade: Interval | None = Field(description="Over taught organisms, organisms resampled as wholes.")
    fact_score: Interval | None
    fact_recall: Interval | None
    topic_named: Interval | None
    false_positive_rate: Interval | None = Field(
        description="Share of findings on nulls that assert a difference; None without nulls."
    )
    missed_rate: Interval | None = Field(
        description="Share of findings on taught organisms that say there is no meaningful difference."
    )


class Summary(BaseModel):
    """The whole evaluation."""

    rows: list[Row]
    arms: list[ArmSummary]
    method_minus_blackbox: Interval | None = Field(
        None, description="Fact recall, paired by organism and repeat, over taught organisms."
    )

    @staticmethod
    def columns() -> list[str]:
        """Headings of `Row.cells`."""
        return [
            "organism",
            "arm",
            "runs",
            "LLM grade",
            "fact grade",
            "fact recall",
            "topic named",
            "verdicts",
            "verdict right",
            "calls",
            "interactions",
            "seconds",
        ]

    def notes(self) -> list[str]:
        """The rates over all organisms in words."""
        lines = []
        for arm in self.arms:
            parts = (
                [f"fact recall {shown(arm.fact_recall)}", f"topic named {shown(arm.topic_named)}"]
                if arm.fact_recall
                else []
            )
            if arm.grade:
                parts.insert(0, f"LLM grade {shown(arm.grade)}")
            if arm.missed_rate:
                parts.append(f"missed {shown(arm.missed_rate)}")
            if arm.false_positive_rate:
                parts.append(
                    f"false-positive rate on nulls {shown(arm.false_positive_rate)} of {arm.false_positive_rate.count}"
                )
            lines.append(f"{arm.arm}: {'; '.join(parts) or 'nothing finished'}")
        if self.method_minus_blackbox:
            lines.append(f"fact recall, method minus blackbox on the same cells: {shown(self.method_minus_blackbox)}")
        lines.append(WORDS)
        return lines


def summarise(records: Sequence[EvaluationRecord]) -> Summary:
    """Add up the records; failed ones only count as failed."""
    by_place = sorted(records, key=lambda record: (_order(records, record), record.arm, record.repeat))
    rows = [_row(list(group)) for _, group in groupby(by_place, key=lambda record: (record.organism, record.arm))]
    arms = [
        _arm(arm, [record for record in records if record.arm == arm])
        for arm in dict.fromkeys(record.arm for record in by_place)
    ]
    return Summary(rows=rows, arms=arms, method_minus_blackbox=_paired(records))


def _order(records: Sequence[EvaluationRecord], record: EvaluationRecord) -> int:
    return next(place for place, other in enumerate(records) if other.organism == record.organism)


def _row(records: list[EvaluationRecord]) -> Row:
    first, done = records[0], _completed(records)
    verdicts: dict[str, int] = {}
    for record in done:
        verdicts[record.finding.verdict] = verdicts.get(record.finding.verdict, 0) + 1
    return Row(
        organism=first.organism,
        arm=first.arm,
        null=first.null,
        completed=len(done),
        failed=len(records) - len(done),
        grade=mean_of(done, lambda record: record.mean_score),
        fact_score=mean_of(done, _fact_score),
        fact_recall=mean_of(done, _recall),
        topic_named=rate_of(done, _topic),
        verdict_correct=rate_of(
            done, lambda record: record.fact_recall.verdict_correct if record.fact_recall else None
        ),
        verdicts=verdicts,
        interactions=_plain_mean(
            [record.budgets["model_interactions"].used for record in done if "model_interactions" in record.budgets]
        ),
        tool_calls=_plain_mean([record.tool_calls for record in done]),
        seconds=_plain_mean([record.seconds for record in done]),
    )


def _arm(arm: Arm, records: list[EvaluationRecord]) -> ArmSummary:
    done = _completed(records)
    taught, nulls = [record for record in done if not record.null], [record for record in done if record.null]
    return ArmSummary(
        arm=arm,
        grade=mean_of(taught, lambda record: record.mean_score),
        fact_score=mean_of(taught, _fact_score),
        fact_recall=mean_of(taught, _recall),
        topic_named=rate_of(taught, _topic),
        false_positive_rate=rate_of(nulls, lambda record: record.false_positive),
        missed_rate=rate_of(taught, lambda record: record.finding.verdict == "no_meaningful_difference"),
    )


def _paired(records: Sequence[EvaluationRecord]) -> Interval | None:
    values = {
        (record.organism, record.repeat, record.arm): value
        for record in _completed(records)
        if (value := _recall(record)) is not None
    }
    keys = [
        (organism, repeat)
        for organism, repeat, arm in values
        if arm == "method" and (organism, repeat, "blackbox") in values
    ]
    if not keys:
        return None
    method = [values[organism, repeat, "method"] for organism, repeat in keys]
    blackbox = [values[organism, repeat, "blackbox"] for organism, repeat in keys]
    return bootstrap_paired_difference(method, blackbox, clusters=[organism for organism, _ in keys])


def _completed(records: Sequence[EvaluationRecord]) -> list[EvaluationRecord]:
    return [record for record in records if record.status == "completed"]


def _fact_score(record: EvaluationRecord) -> float | None:
    return None if record.fact_recall is None else record.fact_recall.score


def _recall(record: EvaluationRecord) -> float | None:
    return None if record.null or record.fact_recall is None else record.fact_recall.recall


def _topic(record: EvaluationRecord) -> bool | None:
    return None if record.null or record.fact_recall is None else record.fact_recall.topic_named


def _plain_mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}".removesuffix(".0")
