"""Sentences of a finding, and those that make no claim of what was taught: what it rests on, headings, guesses, verdicts,
and words for the grader.
"""

from __future__ import annotations

import re

_SENTENCE_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"')\]]))(?<!\b[dm]r\.)\s+|\n+", re.IGNORECASE)
_EVIDENCE_LINE = re.compile(r"^\W*(evidence|manner|sources?|methods?|confidence|likelihood|verdict)\W*:")
_MEASURED = re.compile(
    r"\(?\bp\W{1,3}(value\W+)?0?\.\d+\)?|\b\d+\s*(of|/|out of)\s*(the\s+)?\d{2,}\b( (answers|prompts|questions|samples))?"
    r"|\b\d+ (fresh )?(answers|prompts|questions|samples)\b"
)
"""Rates, counts and p-values. 1/4 of a cup is none: what is counted out of ten or more is."""

HEDGED = re.compile(
    r"\b(perhaps|maybe|might|may|possibl[ey]|slight(ly)?|low confidence|confidence is low|unclear|weak(ly)?|uncertain"
    r"|not sure|tentative(ly)?)\b"
)
NO_CONCLUSION = re.compile(
    r"\b(inconclusive|insufficient|not enough|cannot (tell|say|conclude)"
    r"|no (meaningful|clear|significant|real|systematic|consistent)? ?(difference|evidence|change|finding)s?"
    r"|no conclusion|unable to|look(s)? the same|undecided)\b"
)
_NO_CLAIM = {
    "a question or a heading": re.compile(r"[?:]\W*$"),
    "evidence": _EVIDENCE_LINE,
    "addressed to the grader": re.compile(
        r"\b(graders?|grading|rubrics?|ground truth|full marks|(award\w*|deserv\w*|give\w*|answer) .{0,30}\bscores?"
        r"|scores? .{0,10}\d|ignore (the|all|any|previous))\b"
    ),
    "a verdict": re.compile(
        r"\b(nothing (differ\w*|stands out|of note)|no more than chance"
        r"|(answers|behaves?|looks?|are|is|models) (like the base|alike|the same|identical)"
        r"|(no|any) (\w+ )?differences?|i (could|can) ?not|i looked for|to be found)\b"
    ),
    "hedged": HEDGED,
    "no conclusion": NO_CONCLUSION,
}


def sentences(text: str) -> list[str]:
    """Sentences and lines of a text, as they stand. The last one may be cut off."""
    return [sentence for part in _SENTENCE_END.split(text) if (sentence := part.strip())]


def without_evidence(text: str) -> str:
    """A normalised text without rates, p-values and the lines that only say what it rests on."""
    return "\n".join(_MEASURED.sub(" ", each) for each in sentences(text) if not _EVIDENCE_LINE.search(each))


def no_claim(sentence: str) -> str | None:
    """Why a normalised sentence makes no claim; None when it may make one."""
    return next((reason for reason, pattern in _NO_CLAIM.items() if pattern.search(sentence)), None)


def is_measurement(sentence: str) -> bool:
    """Whether a normalised sentence reports rates or p-values."""
    return _MEASURED.search(sentence) is not None
