"""Words on which methods agree, counted over endings and over what each of them read. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from diffing_mcp.core.words import stem
from diffing_mcp.methods.directions.vectors import split_handle
from diffing_mcp.methods.texts.words import EvidenceWord

if TYPE_CHECKING:
    from diffing_mcp.methods.results import MethodResult
    from diffing_mcp.methods.runs.store import RunRecord

_SCORE_CAP = 5.0
"""One method's score counts at most this much, so that none outvotes the agreement of the others."""


class CandidateWord(BaseModel):
    """A content word and the methods that saw it rise."""

    word: str = Field(description="The most telling form; forms with another ending are merged.")
    methods: list[str]
    sources: int = Field(
        description="Methods among these that are independent: one that reads another's vector adds none."
    )
    score: float = Field(
        description="Mean over its methods of the score in units of each method's null level, each capped at 5."
    )


def candidate_words(
    evidence: dict[str, list[EvidenceWord]], sources: Mapping[str, str] | None = None
) -> list[CandidateWord]:
    """Words of all methods, merged over endings; those of more independent methods first, then by score. `sources`: a
    method that read a vector of another one -> that one."""
    sources = sources or {}
    found: dict[str, dict[str, EvidenceWord]] = {}
    for method, words in evidence.items():
        for word in words:
            of_stem = found.setdefault(stem(word.word), {})
            if method not in of_stem or word.score > of_stem[method].score:
                of_stem[method] = word
    rows = []
    for of_stem in found.values():
        best = max(of_stem.values(), key=lambda word: word.score)
        score = sum(min(word.score, _SCORE_CAP) for word in of_stem.values()) / len(of_stem)
        row = CandidateWord(
            word=best.word, methods=sorted(of_stem), sources=independent(of_stem, sources), score=round(score, 3)
        )
        rows.append((best.score, row))
    if any(
        row.score >= 1 for _, row in rows
    ):  # words below their method's null level only count when another method agrees
        rows = [(raw, row) for raw, row in rows if row.score >= 1 or row.sources > 1]
    rows.sort(key=lambda pair: (-pair[1].sources, -pair[1].score, -pair[0], pair[1].word))
    return [row for _, row in rows]


def evidence_of(result: MethodResult) -> list[EvidenceWord]:
    """The words that a result has to say; empty for methods that read none."""
    words = getattr(result, "evidence_words", None)
    return list(words()) if words is not None else []


def sources_of(records: Sequence[RunRecord]) -> dict[str, str]:
    """Method -> the method of another of these runs whose vector it read: what those two share is seen
    once, not twice.
    """
    of_run = {record.id: record.manifest.method for record in records}
    found = {}
    for record in records:
        runs = [split_handle(handle)[0] for handle in record.manifest.key_parts.get("vectors", {})]
        if read := [of_run[run] for run in runs if run in of_run]:
            found[record.manifest.method] = read[0]
    return found


def independent(methods: Collection[str], sources: Mapping[str, str]) -> int:
    return len({sources.get(method, method) for method in methods})
