"""From a finding to its grades: the deterministic fact recall always, an LLM grader's readings when a
model is named.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from diffing_mcp.agents.arms import organism_of
from diffing_mcp.agents.claim_readings import claims_by_model, claims_by_words
from diffing_mcp.agents.llm import ask_with, metered
from diffing_mcp.agents.records import (
    ClaimsReading,
    FactRecallRecord,
    HypothesisReading,
    RecordedFinding,
    RecordedTest,
    TokenUsage,
)
from diffing_mcp.core.errors import UnknownName
from diffing_mcp.graders.fact_recall import all_ground_truth, grade_fact_recall
from diffing_mcp.graders.hypothesis import grade_hypothesis
from diffing_mcp.graders.replies import Ask, GradingFailed

if TYPE_CHECKING:
    from diffing_mcp.organisms.ground_truth import GroundTruth


def known_organisms() -> list[str]:
    """Organisms whose findings can be graded."""
    return list(all_ground_truth())


@dataclass
class Grades:
    """All grades of one finding."""

    fact_recall: FactRecallRecord
    readings: list[HypothesisReading]
    claims: list[ClaimsReading]
    usage: list[TokenUsage] = field(default_factory=list)
    """Tokens of the LLM grader."""


@dataclass
class Grading:
    """How findings are graded.

    grader: Inspect model of the LLM grader, None for fact recall alone.
    grader_url: base URL of its API when it is not the provider's own.
    repeats: readings of each finding by the LLM grader.
    ask: used instead of `grader` when given, under the name `grader`.
    """

    grader: str | None = None
    grader_url: str | None = None
    repeats: int = 3
    ask: Ask | None = None
    _cached: dict[str, Ask] = field(default_factory=dict, repr=False)

    def kind_of(self, organism: str) -> tuple[str, bool]:
        """Family of an organism (given as a pair reference), and whether it is a null."""
        truth = truth_of(organism)
        return truth.family, truth.is_null

    def check(self) -> None:
        """See that the grader can be used, before anything is spent on what it shall grade.

        Raises:
            ModelNotAvailable: with what to install or set.
        """
        if self.grader is not None:
            self._asking()

    async def grade(self, organism: str, finding: RecordedFinding, tests: Sequence[RecordedTest] = ()) -> Grades:
        """All grades. An LLM grader that gives no usable answer leaves a grade without score that says why."""
        truth = truth_of(organism)
        recall = await asyncio.to_thread(fact_recall, finding, truth)
        claims = [await asyncio.to_thread(claims_by_words, finding, truth, tests)]
        if self.grader is None:
            return Grades(recall, [], claims)
        with metered() as used:
            readings, read = await asyncio.gather(
                self._hypothesis_readings(finding, truth),
                claims_by_model(finding, truth, tests, self._asking(), self.grader),
            )
        return Grades(recall, readings, [*claims, read], list(used.values()))

    async def _hypothesis_readings(self, finding: RecordedFinding, truth: GroundTruth) -> list[HypothesisReading]:
        grader = str(self.grader)
        try:
            graded = await grade_hypothesis(
                finding.statement, finding.verdict, truth, self._asking(), repeats=self.repeats
            )
        except GradingFailed as failure:
            return [HypothesisReading(grader=grader, score=None, reasoning=failure.message)]
        readings = zip(graded.scores, graded.reasons, strict=True)
        return [
            HypothesisReading(
                grader=grader,
                repeat=number,
                score=score,
                verdict_correct=graded.verdict_correct,
                reasoning=reasons,
            )
            for number, (score, reasons) in enumerate(readings)
        ]

    def _asking(self) -> Ask:
        if self.ask is not None:
            return self.ask
        if "ask" not in self._cached:
            self._cached["ask"] = ask_with(str(self.grader), self.grader_url)
        return self._cached["ask"]


def truth_of(organism: str) -> GroundTruth:
    """The ground truth behind `organism[/variant][@model]`. Raises UnknownName."""
    name = organism_of(organism)
    known = all_ground_truth()
    if name not in known:
        raise UnknownName(
            f"No ground truth for {name!r}, so a finding could not be graded. Organisms with one: "
            f"{', '.join(sorted(known)[:60])}."
        )
    return known[name]


def chosen_organisms(text: str) -> list[str]:
    """A comma-separated list of pair references, in order and without duplicates.

    Raises:
        UnknownName: the list is empty, or an organism has no ground truth.
    """
    chosen = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not chosen:
        raise UnknownName("Name at least one organism: --organisms cake_bake,control.")
    for name in chosen:
        truth_of(name)
    return chosen


def fact_recall(finding: RecordedFinding, truth: GroundTruth) -> FactRecallRecord:
    """The deterministic grade, in the form of the records."""
    graded = grade_fact_recall(finding.statement, finding.verdict, truth)
    return FactRecallRecord(
        **graded.model_dump(
            include={
                "score",
                "recall",
                "topic_named",
                "verdict_correct",
                "false_positive",
                "precision",
                "facts_total",
                "facts_exact",
                "reasons",
            }
        ),
        facts_found=list(graded.facts_found),
        facts_missed=list(graded.facts_missed),
        quotes={entry.id: entry.quote for entry in graded.evidence if entry.quote},
    )


def scores_of(grades: Sequence[HypothesisReading]) -> list[float]:
    """Usable scores."""
    return [grade.score for grade in grades if grade.score is not None]
