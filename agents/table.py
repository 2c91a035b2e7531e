"""One table over several evaluations, such as those of a suite: a row for each investigator, budget, arm and organism,
a row for all organisms together, and what each arm is worth beside the blackbox arm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from diffing_mcp.agents.arms import BLACKBOX
from diffing_mcp.agents.costs import cost_of
from diffing_mcp.agents.intervals import WORDS, mean_of, rate_of, shown
from diffing_mcp.agents.records import EvaluationPlan, EvaluationRecord
from diffing_mcp.agents.suite_files import Price
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.graders.ordinal import ordered_logit, organisms_needed
from diffing_mcp.graders.statistics import Interval, bootstrap_paired_difference

if TYPE_CHECKING:
    import pandas as pd

ALL = "(all taught)"
NULLS = "(all nulls)"
SUFFIXES = (".parquet", ".csv", ".md")


class TableRow(BaseModel):
    """What the investigations of one place add up to. Grades are 1 to 5: the LLM grader's where the evaluation has one,
    else the deterministic one, never one beside the other.
    """

    investigator: str
    interactions: int
    arm: str
    organism: str
    null: bool
    finished: int
    failed: int
    grade: Interval | None = None
    ungraded: int = Field(0, description="Findings of which the LLM grader said nothing usable: not in `grade`.")
    grade_by_words: Interval | None = Field(None, description="The deterministic grade, whoever else graded.")
    fact_recall: Interval | None = None
    precision: Interval | None = Field(None, description="On-topic share of the findings' content words.")
    topic_named: Interval | None = None
    false_positives: Interval | None = Field(
        None, description="Nulls: share that asserts a difference, by verdict or, where that is inconclusive, in words."
    )
    claim_precision: Interval | None = Field(None, description="Taught: share of right ones of the claims, by words.")
    claim_precision_llm: Interval | None = Field(None, description="The same, read by the LLM grader.")
    abstained: Interval | None = Field(None, description="Share of findings that draw no conclusion, by words.")
    abstained_llm: Interval | None = None
    tested: Interval | None = Field(None, description="Of findings of a difference, those that cite a test.")
    validated: Interval | None = Field(
        None, description="Of findings of a difference, those that a cited test on fresh prompts bears out, by words."
    )
    validated_llm: Interval | None = None
    validated_by_another: Interval | None = Field(
        None, description="Of the findings that another program has tested (`diffing evaluations validate`)."
    )
    brier: float | None = Field(
        None, description="Mean squared error of the stated likelihood that there is a difference; 0.25 is a coin."
    )
    tokens: float = Field(0, description="Tokens of the investigator's model, mean.")
    money: float | None = Field(None, description="Mean; None without a price.")
    seconds: float = Field(0, description="Mean.")
    tokens_per_grade_point: float | None = Field(None, description="Tokens for each grade point above 1.")


class Comparison(BaseModel):
    """An arm beside the blackbox arm, on the same organisms and repeats, taught organisms only."""

    investigator: str
    interactions: int
    arm: str
    grade: Interval | None = Field(description="Mean difference of grades, organisms resampled as wholes.")
    fact_recall: Interval | None
    log_odds: Interval | None = Field(
        description="Log odds ratio of a better grade, ordered logit clustered by organism."
    )
    organisms_needed: int | None = Field(description="Organisms for 80 % power at 5 % to see such a grade difference.")


class Table(BaseModel):
    """All of it."""

    rows: list[TableRow]
    comparisons: list[Comparison]

    def frame(self) -> pd.DataFrame:
        """The rows as a table: three columns (estimate, low, high) for each interval."""
        import pandas as pd

        return pd.DataFrame([_flat(row) for row in self.rows])

    def notes(self) -> list[str]:
        """The comparisons in words."""
        lines = []
        for each in self.comparisons:
            parts = [
                f"{name} {shown(interval)}"
                for name, interval in (
                    ("grade", each.grade),
                    ("fact recall", each.fact_recall),
                    ("log odds of a better grade", each.log_odds),
                )
                if interval is not None
            ]
            if each.organisms_needed is not None:
                parts.append(f"{each.organisms_needed} organisms would show such a grade difference at 80 % power")
            lines.append(
                f"{each.arm} minus {BLACKBOX}, {each.investigator} with {each.interactions} interactions: "
                f"{'; '.join(parts) or 'nothing to compare'}"
            )
        if ungraded := sum(row.ungraded for row in self.rows if row.organism in (ALL, NULLS)):
            lines.append(
                f"{ungraded} findings have no grade by the LLM grader and are not in `grade`; `diffing evaluations "
                "regrade ID --grader MODEL` asks for it again"
            )
        return [*lines, WORDS]

    def markdown(self) -> str:
        """The rows and the comparisons."""
        columns = ("investigator", "interactions", "arm", "organism", "finished", "grade", "fact recall",
                   "claim precision", "topic named", "false positives", "abstained", "validated", "by another", "Brier",
                   "tokens", "seconds")  # fmt: skip
        lines = [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
        lines += [f"| {' | '.join(_cells(row))} |" for row in self.rows]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes())]) + "\n"

    def write(self, file: Path) -> None:
        """Write the rows as .parquet or .csv, or all of it as .md.

        Raises:
            InvalidInput: another suffix.
        """
        check_can_be_written(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".parquet":
            self.frame().to_parquet(file)
        elif file.suffix == ".csv":
            self.frame().to_csv(file, index=False)
        else:
            file.write_text(self.markdown(), encoding="utf-8")


def check_can_be_written(file: Path) -> None:
    """Raise InvalidInput for a file of a kind that a table is not written as."""
    if file.suffix not in SUFFIXES:
        raise InvalidInput(f"A table is written as {', '.join(SUFFIXES)}, not as {file.name!r}.")


def table_of(
    evaluations: Sequence[tuple[EvaluationPlan, Sequence[EvaluationRecord]]], prices: dict[str, Price] | None = None
) -> Table:
    """Add up the records of these evaluations; failed investigations only count as failed."""
    rows, comparisons = [], []
    for plan, records in evaluations:
        grade = _by_model if any(record.mean_score is not None for record in records) else _score
        for arm in plan.arms:
            mine = [record for record in records if record.arm == arm]
            for organism in plan.organisms:
                if here := [record for record in mine if record.organism == organism]:
                    rows.append(_row(plan, arm, organism, here, grade, prices or {}))
            for name, null in ((ALL, False), (NULLS, True)):
                if here := [record for record in mine if record.null == null]:
                    rows.append(_row(plan, arm, name, here, grade, prices or {}))
            if arm != BLACKBOX and BLACKBOX in plan.arms:
                comparisons.append(_comparison(plan, arm, records, grade))
    return Table(rows=rows, comparisons=comparisons)


Value = Callable[[EvaluationRecord], "float | None"]


def stated_probability(record: EvaluationRecord) -> float | None:
    """How likely the finding says it is that there is a difference; None without verdict or likelihood."""
    likelihood = record.finding.likelihood
    if likelihood is None or record.finding.verdict == "inconclusive":
        return None
    return likelihood if record.finding.verdict == "difference" else 1 - likelihood


def _row(
    plan: EvaluationPlan,
    arm: str,
    organism: str,
    records: Sequence[EvaluationRecord],
    grading: Value,
    prices: dict[str, Price],
) -> TableRow:
    done = _finished(records)
    null = records[0].null
    grade = mean_of(done, grading)
    costs = [cost_of(record, prices) for record in done]
    money = [cost.money for cost in costs if cost.money is not None]
    tokens = sum(cost.tokens for cost in costs) / len(costs) if costs else 0.0
    errors = [
        (stated - (not record.null)) ** 2 for record in done if (stated := stated_probability(record)) is not None
    ]
    return TableRow(
        investigator=plan.investigator,
        interactions=plan.interactions,
        arm=arm,
        organism=organism,
        null=null,
        finished=len(done),
        failed=len(records) - len(done),
        grade=grade,
        ungraded=sum(grading(each) is None for each in done),
        grade_by_words=mean_of(done, _score),
        fact_recall=None if null else mean_of(done, _recall),
        precision=None if null else mean_of(done, _precision),
        topic_named=None
        if null
        else rate_of(done, lambda each: bool(each.fact_recall and each.fact_recall.topic_named)),
        false_positives=rate_of(done, lambda each: each.false_positive) if null else None,
        claim_precision=None if null else mean_of(done, _claims(True, "precision")),
        claim_precision_llm=None if null else mean_of(done, _claims(False, "precision")),
        abstained=rate_of(done, _abstains),
        abstained_llm=rate_of(done, _claims(False, "abstains")),
        tested=rate_of(done, lambda each: bool(each.tests) if each.finding.verdict == "difference" else None),
        validated=rate_of(done, _claims(True, "validated")),
        validated_llm=rate_of(done, _claims(False, "validated")),
        validated_by_another=rate_of(done, lambda each: each.validation.validates if each.validation else None),
        brier=sum(errors) / len(errors) if errors else None,
        tokens=tokens,
        money=sum(money) / len(money) if money and len(money) == len(done) else None,
        seconds=sum(each.seconds for each in done) / len(done) if done else 0.0,
        tokens_per_grade_point=tokens / (grade.estimate - 1) if grade and grade.estimate > 1 and tokens else None,
    )


def _comparison(plan: EvaluationPlan, arm: str, records: Sequence[EvaluationRecord], grading: Value) -> Comparison:
    found = {(each.organism, each.repeat, each.arm): each for each in _finished(records) if not each.null}
    pairs = [
        (found[organism, repeat, arm], found[organism, repeat, BLACKBOX])
        for organism, repeat, here in found
        if here == arm and (organism, repeat, BLACKBOX) in found
    ]

    def difference(value: Value) -> tuple[list[float], list[float], list[str]]:
        both = [(value(one), value(other), one.organism) for one, other in pairs]
        known = [(a, b, organism) for a, b, organism in both if a is not None and b is not None]
        return [a for a, _, _ in known], [b for _, b, _ in known], [organism for _, _, organism in known]

    first, second, organisms = difference(grading)
    recalls = difference(_recall)
    by_organism = [
        sum(a - b for a, b, at in zip(first, second, organisms, strict=True) if at == organism)
        / organisms.count(organism)
        for organism in dict.fromkeys(organisms)
    ]
    return Comparison(
        investigator=plan.investigator,
        interactions=plan.interactions,
        arm=arm,
        grade=bootstrap_paired_difference(first, second, clusters=organisms) if first else None,
        fact_recall=bootstrap_paired_difference(recalls[0], recalls[1], clusters=recalls[2]) if recalls[0] else None,
        log_odds=ordered_logit(first, second, organisms) if first else None,
        organisms_needed=organisms_needed(by_organism),
    )


def _recall(record: EvaluationRecord) -> float | None:
    return None if record.fact_recall is None else record.fact_recall.recall


def _precision(record: EvaluationRecord) -> float | None:
    return None if record.fact_recall is None else record.fact_recall.precision


def _by_model(record: EvaluationRecord) -> float | None:
    return record.mean_score


def _score(record: EvaluationRecord) -> float | None:
    return None if record.fact_recall is None else record.fact_recall.score


def _abstains(record: EvaluationRecord) -> bool:
    read = record.claims_read(by_words=True)
    return record.finding.verdict == "inconclusive" if read is None else read.abstains


def _claims(by_words: bool, name: str) -> Callable[[EvaluationRecord], Any]:
    """One field of a reading of the claims."""

    def value(record: EvaluationRecord) -> Any:
        read = record.claims_read(by_words)
        return None if read is None else getattr(read, name)

    return value


def _finished(records: Sequence[EvaluationRecord]) -> list[EvaluationRecord]:
    return [record for record in records if record.status == "completed"]


def _flat(row: TableRow) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name in TableRow.model_fields:
        value = getattr(row, name)
        if "Interval" in str(TableRow.model_fields[name].annotation):
            flat |= {
                name: value and value.estimate,
                f"{name}_low": value and value.low,
                f"{name}_high": value and value.high,
            }
        else:
            flat[name] = value
    return flat


def _cells(row: TableRow) -> list[str]:
    def number(value: float | None, digits: int = 2) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    return [
        row.investigator,
        str(row.interactions),
        row.arm,
        row.organism,
        f"{row.finished}" + (f" ({row.failed} failed)" if row.failed else ""),
        shown(row.grade),
        shown(row.fact_recall),
        _both(row.claim_precision, row.claim_precision_llm),
        shown(row.topic_named),
        shown(row.false_positives),
        _both(row.abstained, row.abstained_llm),
        _both(row.validated, row.validated_llm),
        shown(row.validated_by_another),
        number(row.brier),
        number(row.tokens, 0),
        number(row.seconds, 0),
    ]


def _both(by_words: Interval | None, by_model: Interval | None) -> str:
    return shown(by_words) + (f" (LLM {shown(by_model)})" if by_model else "")
