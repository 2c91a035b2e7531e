"""The claims of a finding for its record: how many are right, whether it abstains, and whether a test on fresh prompts
bears it out; by words, and by a language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffing_mcp.agents.records import BY_WORDS, ClaimsReading, RecordedFinding, RecordedTest
from diffing_mcp.core.words import stem
from diffing_mcp.graders.claim_labels import label_claims, label_support
from diffing_mcp.graders.claims import ClaimsGrade, grade_claims
from diffing_mcp.graders.replies import Ask, GradingFailed
from diffing_mcp.graders.text import content_words, normalise

if TYPE_CHECKING:
    from diffing_mcp.organisms.ground_truth import GroundTruth

_WAYS_OF_COUNTING = "answers matching with that meet or log-probability of against"
"""The words with which the server says how it counted; a test is about the others."""


def claims_by_words(finding: RecordedFinding, truth: GroundTruth, tests: Sequence[RecordedTest]) -> ClaimsReading:
    """Deterministic. A validating test supports the finding when it counted something that the statement says."""
    graded = grade_claims(finding.statement, finding.verdict, truth)
    said = _stems(finding.statement) - _stems(_WAYS_OF_COUNTING)
    supported = any(test.validates and said & _stems(test.counted) for test in tests)
    return _reading(BY_WORDS, graded, finding, supported)


async def claims_by_model(
    finding: RecordedFinding, truth: GroundTruth, tests: Sequence[RecordedTest], ask: Ask, grader: str
) -> ClaimsReading:
    """Whether a finding's claims are supported, judged by a language model called `grader`. Without a usable answer the
    reading says why.

    Raises:
        Exception: whatever `ask` raises.
    """
    validating = [f"{test.counted}: {test.verdict}" for test in tests if test.validates]
    try:
        graded = await label_claims(finding.statement, finding.verdict, truth, ask)
        supported = bool(validating) and await label_support(finding.statement, validating, ask)
    except GradingFailed as failure:
        return ClaimsReading(grader=grader, problem=failure.message)
    return _reading(grader, graded, finding, supported)


def _reading(grader: str, graded: ClaimsGrade, finding: RecordedFinding, supported: bool) -> ClaimsReading:
    return ClaimsReading(
        grader=grader,
        labels=[claim.label for claim in graded.claims],
        right=graded.right,
        wrong=graded.wrong,
        precision=graded.precision,
        abstains=graded.abstains,
        validated=supported if finding.verdict == "difference" else None,
    )


def _stems(text: str) -> set[str]:
    return {stem(word) for word in content_words(normalise(text))}
