"""`diffing evaluations agreement`: how far graders agree with the findings marked by hand. It prints
docs/grading.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from diffing_mcp.cli.options import JsonOption

if TYPE_CHECKING:
    from diffing_mcp.graders.marked_agreement import GraderAnswer, MarkedAgreement
    from diffing_mcp.graders.marked_findings import MarkedFinding
    from diffing_mcp.graders.statistics import Interval

HALVES = (("even", 1), ("odd", 0))
"""Name of each half, and the place of its first finding."""

_HEAD = """# How far the graders agree with marks made by hand

<!-- Written by `make grading`; edit cli/agreement.py. -->

{findings} findings with {claims} sentences are marked in `graders/marked_findings.yaml`: a grade by the rubric of the
organism's family, and each sentence as a claim that is `right`, one that is `wrong`, or `none`. {run} are findings of
investigations as they were handed in, {written} were written for this: exact, partly right, vague, on a wrong topic,
with invented details, hedged, denied, of nulls and false alarms, and with text that addresses the grader.

One marker went through all of them, with the ground truth at hand and before any grader read them. So the figures say
how well a grader does what that marker would have done; how far two markers agree is not known. The deterministic
graders were mended with the odd findings in view: **the even half is the fair one.** Before that they had agreed with
the grades of the odd half with a weighted kappa of 0.94 and given the mark's label to 86 % of its claims; on the even
half 0.95 and 81 %.
Intervals are 95 %, by a bootstrap over findings.
"""

_FOOT = """
A grader by words cannot tell a wrong statement made of the right words from a right one: most claims that were marked
wrong and passed are garbled quotations of the model. `diffing evaluations agreement --grader MODEL` measures a language
model on the same marks."""


def agreement(
    grader: Annotated[str, typer.Option(help="`words` (the deterministic graders) or an Inspect model.")] = "words",
    grader_url: Annotated[str | None, typer.Option(help="Base URL of the grader's API.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a grader with the findings that were marked by hand."""
    from diffing_mcp.cli.output import print_json, print_plain
    from diffing_mcp.graders.marked_agreement import grade_by_words, measure_agreement
    from diffing_mcp.graders.marked_findings import marked_findings

    findings: Sequence[MarkedFinding] = marked_findings()
    if grader == "words":
        grades = [grade_by_words(finding) for finding in findings]
    else:
        findings, grades = _graded_by_model(findings, grader, grader_url)
    measured = {name: measure_agreement(findings[start::2], grades[start::2]) for name, start in HALVES}
    if as_json:
        print_json({name: each.model_dump(mode="json") for name, each in measured.items()})
    else:
        print_plain(page(findings, grader, measured))


def page(findings: Sequence[MarkedFinding], grader: str, measured: dict[str, MarkedAgreement]) -> str:
    """The page in Markdown."""
    sources = Counter(finding.source for finding in findings)
    head = _HEAD.format(
        findings=len(findings),
        claims=sum(len(finding.claims) for finding in findings),
        run=sources["run"],
        written=sources["written"],
    )
    lines = [
        f"| {grader} | " + " | ".join(f"{name} half" for name in measured) + " |",
        "|---" * (len(measured) + 1) + "|",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in _rows(list(measured.values()))),
    ]
    return f"{head}\n{chr(10).join(lines)}\n{_FOOT}"


def _rows(measured: Sequence[MarkedAgreement]) -> list[tuple[str, list[str]]]:
    rows = [
        ("findings", [str(each.findings) for each in measured]),
        ("grades: weighted kappa", [_shown(each.kappa) for each in measured]),
        ("grades: equal", [f"{each.grades.exact:.2f}" for each in measured]),
        ("grades: at most 1 apart", [f"{each.grades.within_one:.2f}" for each in measured]),
        ("claims: kappa of the labels", [_shown(each.claim_kappa) for each in measured]),
    ]
    for place, first in enumerate(measured[0].labels):
        at = [each.labels[place] for each in measured]
        rows.append((f"claims marked {first.label}", [str(each.marked) for each in at]))
        rows.append((f"claims labelled {first.label}: precision", [_shown(each.precision) for each in at]))
        rows.append((f"claims labelled {first.label}: recall", [_shown(each.recall) for each in at]))
    abstaining = [f"{each.abstentions[2]} of {each.abstentions[0]}" for each in measured]
    rows.append(("abstentions found", abstaining))
    rows.append(("taken for abstentions", [str(each.abstentions[1] - each.abstentions[2]) for each in measured]))
    return rows


def _shown(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.estimate:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _graded_by_model(
    findings: Sequence[MarkedFinding], grader: str, url: str | None
) -> tuple[list[MarkedFinding], list[GraderAnswer]]:
    """The findings to which the model gave usable answers, and these.

    Raises:
        GradingFailed: it gave none.
    """
    import asyncio

    from diffing_mcp.agents.llm import ask_with
    from diffing_mcp.cli.output import note
    from diffing_mcp.graders.claim_labels import label_claims
    from diffing_mcp.graders.hypothesis import grade_hypothesis
    from diffing_mcp.graders.marked_agreement import GraderAnswer
    from diffing_mcp.graders.replies import GradingFailed
    from diffing_mcp.organisms.ground_truth import load_ground_truth

    async def graded() -> list[tuple[MarkedFinding, GraderAnswer]]:
        ask = ask_with(grader, url)
        found: list[tuple[MarkedFinding, GraderAnswer]] = []
        failure: GradingFailed | None = None
        for finding in findings:
            truth = load_ground_truth(finding.organism)
            try:
                read = await grade_hypothesis(finding.statement, finding.verdict, truth, ask, repeats=1)
                claims = await label_claims(finding.statement, finding.verdict, truth, ask)
            except GradingFailed as error:  # what the others cost is not lost
                failure = error
                continue
            labels = tuple(claim.label for claim in claims.claims)
            found.append((finding, GraderAnswer(read.score, labels, claims.abstains)))
        if failure is not None and len(found) < len(HALVES):  # a half would be empty
            raise failure
        if failure is not None:
            note(f"diffing: {len(findings) - len(found)} findings are left out: {failure.message}")
        return found

    both = asyncio.run(graded())
    return [finding for finding, _ in both], [grade for _, grade in both]
