"""Search in all transcripts of an evaluation: the steps that have all words, each with a link to it."""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup

from diffing_mcp.agents.records import EvaluationRecord
from diffing_mcp.core.words import beginning_with
from diffing_mcp.ui.addresses import address
from diffing_mcp.ui.html import div, element, empty, highlighted, join
from diffing_mcp.ui.transcript_view import Step, steps_of

MOST = 50
"""Steps that are listed."""
_BEFORE, _AFTER = 60, 180
"""Characters around the first of the words."""


def search_html(records: Iterable[EvaluationRecord], words: str | None) -> Markup:
    """The steps of these records that have all words (beginnings of words, whatever their case), in their order."""
    wanted = (words or "").split()
    patterns = [beginning_with([word]) for word in wanted]
    if not wanted:
        return Markup("")
    found = [
        (record, place, step)
        for record in records
        for place, step in enumerate(steps_of(record), 1)
        if all(pattern.search(step.text) for pattern in patterns)
    ]
    if not found:
        return empty("No step has all these words", "A step is what was thought, said, or called with its answer.")
    more = f"; the first {MOST} are listed" if len(found) > MOST else ""
    cells = len({record.cell_id for record, _, _ in found})
    said = element("p", f"{len(found)} steps of {cells} transcripts{more}.", classes="d-note")
    return join([said, *(_hit(*each, wanted) for each in found[:MOST])])


def _hit(record: EvaluationRecord, place: int, step: Step, wanted: list[str]) -> Markup:
    where = address(
        "transcripts",
        evaluation=record.evaluation_id,
        organism=record.organism,
        arm=record.arm,
        repeat=record.repeat,
    )
    named = f"{record.organism}, {record.arm}, repeat {record.repeat}, step {place}"
    link = Markup('<a class="d-link" href="{}#step-{}">{}</a>').format(where, place, named)
    first = beginning_with(wanted[:1]).search(step.text)
    at = max(0, (first.start() if first else 0) - _BEFORE)
    text = " ".join(step.text[at : at + _BEFORE + _AFTER].split())
    return div(link, div(highlighted(text, wanted), classes="d-pre"), classes="d-passage")
