"""How far a grader agrees with the findings marked by hand: grades, labels of claims, abstentions, with intervals that
resample whole findings.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, Field
from scipy.stats import DegenerateDataWarning, bootstrap

from diffing_mcp.graders.claims import LABELS, Label, grade_claims
from diffing_mcp.graders.fact_recall import grade_fact_recall
from diffing_mcp.graders.marked_findings import MarkedFinding
from diffing_mcp.graders.statistics import Agreement, Interval, agreement, bootstrap_mean
from diffing_mcp.organisms.ground_truth import load_ground_truth

RESAMPLES = 1000


@dataclass(frozen=True)
class GraderAnswer:
    """What a grader makes of one finding."""

    score: int
    labels: tuple[Label, ...]
    abstains: bool


class LabelAgreement(BaseModel):
    """One label of claims."""

    label: Label
    marked: int = Field(description="Claims marked so by hand.")
    precision: Interval | None = Field(description="Of the claims that the grader labels so, the share marked so.")
    recall: Interval | None = Field(description="Of the claims marked so, the share that the grader labels so.")


class MarkedAgreement(BaseModel):
    """A grader beside the marks."""

    findings: int
    grades: Agreement
    kappa: Interval = Field(description="Quadratically weighted, of the grades.")
    labels: list[LabelAgreement]
    claim_kappa: Interval = Field(description="Unweighted, of the claims' labels.")
    abstentions: tuple[int, int, int] = Field(description="Marked as abstaining, said by the grader, by both.")


def grade_by_words(finding: MarkedFinding) -> GraderAnswer:
    """The deterministic graders on one finding."""
    truth = load_ground_truth(finding.organism)
    claims = grade_claims(finding.statement, finding.verdict, truth)
    return GraderAnswer(
        grade_fact_recall(finding.statement, finding.verdict, truth).score,
        tuple(claim.label for claim in claims.claims),
        claims.abstains,
    )


def measure_agreement(
    findings: Sequence[MarkedFinding], grades: Sequence[GraderAnswer], resamples: int = RESAMPLES
) -> MarkedAgreement:
    """Compare a grader with the marks.

    Raises:
        ValueError: no findings, or a grade that labels another number of claims than were marked.
    """
    claims = [
        (number, marked, given)
        for number, (finding, grade) in enumerate(zip(findings, grades, strict=True))
        for marked, given in zip(finding.labels, grade.labels, strict=True)
    ]
    marked, given = [finding.grade for finding in findings], [grade.score for grade in grades]
    scores = [_counts([(a - 1, b - 1)], 5) for a, b in zip(marked, given, strict=True)]
    labels = [
        _counts([(LABELS.index(a), LABELS.index(b)) for place, a, b in claims if place == number], len(LABELS))
        for number in range(len(findings))
    ]
    distance = np.subtract.outer(np.arange(5), np.arange(5)) ** 2
    return MarkedAgreement(
        findings=len(findings),
        grades=agreement(marked, given),
        kappa=_kappa(scores, distance, resamples),
        labels=[_label(label, claims, resamples) for label in LABELS],
        claim_kappa=_kappa(labels, 1 - np.eye(len(LABELS)), resamples),
        abstentions=(
            sum(finding.abstains for finding in findings),
            sum(grade.abstains for grade in grades),
            sum(a.abstains and b.abstains for a, b in zip(findings, grades, strict=True)),
        ),
    )


def _label(label: Label, claims: Sequence[tuple[int, Label, Label]], resamples: int) -> LabelAgreement:
    def share(chosen: Sequence[tuple[int, bool]]) -> Interval | None:
        if not chosen:
            return None
        return bootstrap_mean([hit for _, hit in chosen], clusters=[at for at, _ in chosen], resamples=resamples)

    return LabelAgreement(
        label=label,
        marked=sum(marked == label for _, marked, _ in claims),
        precision=share([(at, marked == label) for at, marked, given in claims if given == label]),
        recall=share([(at, given == label) for at, marked, given in claims if marked == label]),
    )


def _counts(pairs: Sequence[tuple[int, int]], levels: int) -> np.ndarray:
    """How often each pair of levels occurs: [levels, levels]."""
    table = np.zeros((levels, levels))
    for one, other in pairs:
        table[one, other] += 1
    return table


def _kappa(tables: Sequence[np.ndarray], weights: np.ndarray, resamples: int) -> Interval:
    """Cohen's kappa of the sum of contingency tables, one a finding, with the percentile interval over findings;
    resamples in which it is undefined, all being one label, are left out.

    Args:
        tables: marked x given, [levels, levels] each.
        weights: what a disagreement costs, [levels, levels].
    """
    stacked = np.stack(tables)

    def kappa(chosen: np.ndarray) -> float:
        table = stacked[chosen].sum(axis=0)
        chance = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
        expected = (weights * chance).sum()
        return float(1 - (weights * table).sum() / expected) if expected else float("nan")

    everything = np.arange(len(tables))
    estimate = kappa(everything)
    if len(tables) == 1:
        return Interval(estimate=estimate, low=estimate, high=estimate, count=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # of undefined ones
        found = bootstrap(
            (everything,),
            kappa,
            vectorized=False,
            method="percentile",
            n_resamples=resamples,
            rng=np.random.default_rng(0),
        ).bootstrap_distribution
    low, high = np.percentile(known, (2.5, 97.5)) if len(known := found[~np.isnan(found)]) else (estimate, estimate)
    return Interval(estimate=estimate, low=float(low), high=float(high), count=len(tables))
