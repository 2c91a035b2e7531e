"""Page "Transcripts": one investigation from first to last message, with budgets, the finding, and its grade with
reasons.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from diffing_mcp.agents.records import Budget, EvaluationRecord
from diffing_mcp.ui.addresses import run_link, show_in_address
from diffing_mcp.ui.files import PanelFiles, kept
from diffing_mcp.ui.html import (
    alert,
    chip,
    details,
    div,
    element,
    empty,
    escape,
    heading,
    join,
    number,
    pairs,
    preformatted,
    seconds_text,
)
from diffing_mcp.ui.inspect_viewer import log_link
from diffing_mcp.ui.transcript_search import search_html
from diffing_mcp.ui.transcript_view import side_title, transcript_html
from diffing_mcp.ui.widgets import picker

NONE = "none"
_TO_STEP = """() => {
  const show = left => {
    if (!location.hash) return;
    const step = document.getElementById(location.hash.slice(1));
    if (step) { step.querySelectorAll('details').forEach(each => { each.open = true; }); step.scrollIntoView(); }
    else if (left) setTimeout(show, 100, left - 1);
  };
  setTimeout(show, 100, 100);
  window.addEventListener('hashchange', () => show(0));
}"""
"""JavaScript: an address with a step opens there; the steps come after the browser has looked for it, on a busy machine
seconds after.
"""


def record_html(record: EvaluationRecord | None, evaluations: Path) -> Markup:
    """The finding, its grades with reasons, and what the investigation spent. `evaluations`: the folder of all."""
    if record is None:
        return Markup("")
    parts = [_card("Finding", _finding(record))]
    if record.status == "failed":
        parts.insert(0, alert(f"This cell failed: {record.error}"))
    if record.fact_recall is not None:
        parts.append(_card("Grade by fact recall (no LLM)", _fact_grade(record)))
    if record.hypothesis_grades:
        mean = record.mean_score
        title = f"Grade by an LLM: {mean:.2f} of 5" if mean is not None else "Grade by an LLM: no usable answer"
        parts.append(
            _card(title, *(_hypothesis_grade(record, place) for place in range(len(record.hypothesis_grades))))
        )
    budgets = [_budget(name, budget) for name, budget in record.budgets.items()]
    parts.append(_card("Budgets", *(budgets or [escape("Nothing was limited.")])))
    parts.append(_card("Investigation", _facts(record, evaluations)))
    return join(parts)


def _card(title: str, *children: Any) -> Markup:
    return div(element("h3", title), *children, classes="d-card")


def _finding(record: EvaluationRecord) -> Markup:
    verdict = record.finding.verdict
    right = "no_meaningful_difference" if record.null else "difference"
    kind = "warn" if verdict == "inconclusive" else "good" if verdict == right else "bad"
    source = {
        "submit_finding": "submitted",
        "final_answer": "taken from the last message",
        "none": "nothing was handed in",
    }[record.finding.source]
    return join(
        [
            div(chip(verdict.replace("_", " "), kind), chip(source)),
            preformatted(record.finding.statement) if record.finding.statement else "",
        ]
    )


def _fact_grade(record: EvaluationRecord) -> Markup:
    grade = record.fact_recall
    if grade is None:
        return Markup("")
    chips = [
        chip("verdict right" if grade.verdict_correct else "verdict wrong", "good" if grade.verdict_correct else "bad")
    ]
    if record.null:
        chips.append(chip("false positive", "bad") if grade.false_positive else chip("no false positive", "good"))
    else:
        chips.append(
            chip("topic named" if grade.topic_named else "topic not named", "good" if grade.topic_named else "bad")
        )
        chips.append(chip(f"recall {grade.recall:.0%}"))
    if grade.score is not None:
        chips.insert(0, chip(f"{grade.score} of 5"))
    parts: list[Any] = [div(*chips)]
    if grade.reasons:
        parts += [element("h4", "Reasons"), _items(grade.reasons)]
    if grade.facts_found:
        found = [
            join([fact, element("p", "“", grade.quotes[fact], "”", classes="d-note") if fact in grade.quotes else ""])
            for fact in grade.facts_found
        ]
        parts.append(details(f"Facts found ({len(found)})", _items(found)))
    if grade.facts_missed:
        parts.append(details(f"Facts missed ({len(grade.facts_missed)})", _items(grade.facts_missed)))
    return join(parts)


def _hypothesis_grade(record: EvaluationRecord, place: int) -> Markup:
    grade = record.hypothesis_grades[place]
    score = "no score" if grade.score is None else f"{grade.score:g} of 5"
    verdict = (
        "" if grade.verdict_correct is None else " · verdict right" if grade.verdict_correct else " · verdict wrong"
    )
    return details(
        f"{score}{verdict} · {grade.grader}, reading {grade.repeat + 1}",
        preformatted(grade.reasoning or "No reasons given."),
        opened=place == 0,
    )


def _budget(name: str, budget: Budget) -> Markup:
    words = name.replace("_", " ")
    if budget.limit is None:
        return div(f"{words}: {budget.used} used, unlimited")
    share = min(1.0, budget.used / budget.limit) if budget.limit else 0.0
    bar = Markup(f"<div class='d-bar'><div style='width:{100 * share:.0f}%'></div></div>")
    return div(element("span", f"{words[:1].upper() + words[1:]}: {budget.used} of {budget.limit}"), bar)


def _facts(record: EvaluationRecord, evaluations: Path) -> Markup:
    values: list[tuple[Any, Any]] = [
        ("Investigator", record.investigator),
        ("Seen as", record.label or "–"),
        ("Really", join([record.organism, " ", chip("null") if record.null else ""])),
        ("Time", seconds_text(record.seconds)),
        ("Tool calls", record.tool_calls),
    ]
    if record.limit:
        values.append(("Ended by", f"{record.limit} limit"))
    values += [
        (f"{what}, {usage.model}", f"{number(usage.input_tokens)} in, {number(usage.output_tokens)} out")
        for what, used in (("Tokens", record.usage), ("Tokens of grading", record.grading_usage))
        for usage in used
    ]
    if record.run_ids:
        values.append(("Runs seen", join((run_link(run) for run in record.run_ids), " ")))
    if record.log:
        logs = (evaluations / record.evaluation_id / record.log).parent
        command = element("code", f"inspect view --log-dir {shlex.quote(str(logs))}")
        opened = log_link(record) or element("span", "Open it: ", command)
        values.append(("Inspect log", join([record.log, element("p", opened)])))
    return pairs(values)


def _items(values: list[Any]) -> Markup:
    return element("ul", *(element("li", escape(value)) for value in values), classes="d-list plain")


def beside_of(record: EvaluationRecord) -> str:
    """A cell in one word, as the picker and the address name it."""
    return f"{record.organism}, {record.arm}, {record.repeat}"


def page_html(files: PanelFiles, evaluation: str | None, record: EvaluationRecord, beside: str | None) -> Markup:
    """One transcript with its finding and grades; or two of them, each over its own finding."""
    found, evaluations = files.evaluation(evaluation), files.data_folder / "evaluations"
    cell = next((each for each in found.records if beside_of(each) == beside), None) if found and beside else None
    other = files.record(evaluation, cell.organism, cell.arm, cell.repeat) if cell else None
    if other is None:
        return div(
            element("div", transcript_html(record), classes="d-transcript"),
            element("div", record_html(record, evaluations), classes="d-findings"),
            classes="d-beside one",
        )
    columns = [
        element(
            "div",
            side_title(each),
            record_html(each, evaluations),
            transcript_html(each, anchor),
            classes="d-transcript",
        )
        for each, anchor in ((record, "step"), (other, "beside"))
    ]
    return div(*columns, classes="d-beside")


def build(files: PanelFiles, demo: gr.Blocks) -> None:
    """Lay out the page and connect it."""

    def shown(
        identifier: str | None, organism: str | None, arm: str | None, repeat: int | None, beside: str | None
    ) -> Markup:
        record = files.record(identifier, organism, arm, repeat)
        if record is not None:
            return page_html(files, identifier, record, beside)
        evaluation = files.evaluation(identifier)
        if evaluation and not evaluation.complete:
            return empty("Not finished yet", "This cell has no record yet. Refresh to look again.")
        command = "diffing evaluate --organisms cake_bake,control,identical"
        return empty("No transcripts yet", "Transcripts come from evaluations.", command)

    def searched(identifier: str | None, words: str | None) -> Markup:
        return search_html(files.whole_records(identifier), words)

    def narrowed(
        identifier: str | None, organism: str | None, arm: str | None, repeat: int | None, beside: str | None
    ) -> tuple[Any, ...]:
        """Choices that exist in this evaluation, with the selection kept where it can be."""
        evaluation = files.evaluation(identifier)
        plan = evaluation.plan if evaluation else None
        organisms, arms = (list(plan.organisms), list(plan.arms)) if plan else ([], [])
        repeats = list(range(plan.repeats)) if plan else []
        # The method arm first: it is the one with the most to read.
        organism = organism if organism in organisms else (organisms[0] if organisms else None)
        arm = arm if arm in arms else ("method" if "method" in arms else arms[0] if arms else None)
        repeat = repeat if repeat in repeats else (repeats[0] if repeats else None)
        cells = [beside_of(record) for record in evaluation.records] if evaluation else []
        beside = beside if beside in cells else NONE
        return (
            gr.update(choices=organisms, value=organism),
            gr.update(choices=arms, value=arm),
            gr.update(choices=[(str(place), place) for place in repeats], value=repeat),
            gr.update(choices=[NONE, *cells], value=beside),
            shown(identifier, organism, arm, repeat, beside),
        )

    def opened(
        identifier: str | None, organism: str | None, arm: str | None, repeat: int | None, beside: str | None
    ) -> tuple[Any, ...]:
        choices = files.evaluation_choices()
        chosen = kept(choices, identifier)
        return (gr.update(choices=choices, value=chosen), *narrowed(chosen, organism, arm, repeat, beside))

    def addressed(request: gr.Request) -> tuple[Any, ...]:
        query = request.query_params
        repeat = query.get("repeat", "0")
        wanted = (query.get("evaluation"), query.get("organism"), query.get("arm"))
        return opened(*wanted, int(repeat) if repeat.isdecimal() else 0, query.get("beside"))

    gr.HTML(
        heading(
            "Transcripts",
            (
                "One investigation as it went: what the investigator said and called, what it concluded, and how that "
                "was graded. Another one can stand beside it, such as that of a control."
            ),
        )
    )
    with gr.Row(elem_classes="d-controls"):
        evaluation = picker([], label="Evaluation", scale=4, elem_id="transcript-evaluation")
        organism = picker([], label="Organism", scale=3, elem_id="transcript-organism")
        arm = picker([], label="Arm", scale=2, elem_id="transcript-arm")
        repeat = picker([], label="Repeat", scale=1, min_width=90, elem_id="transcript-repeat")
        beside = picker([NONE], value=NONE, label="Beside it", scale=3, elem_id="transcript-beside")
        refresh = gr.Button("Refresh", scale=0, min_width=110)
    search = gr.Textbox(
        label="Search all transcripts of this evaluation", placeholder="words of one step", elem_id="transcript-search"
    )
    found = gr.HTML(elem_id="transcript-found")
    page = gr.HTML(elem_id="transcript")

    cell: list[Any] = [evaluation, organism, arm, repeat, beside]
    loading = demo.load(addressed, None, [*cell, page], api_visibility="private", show_progress="hidden")
    loading.then(None, None, None, js=_TO_STEP, api_visibility="private")
    events = [
        refresh.click(opened, cell, [*cell, page], api_visibility="private"),
        evaluation.input(narrowed, cell, [organism, arm, repeat, beside, page], api_visibility="private"),
        *(choice.input(shown, cell, page, api_visibility="private") for choice in (organism, arm, repeat, beside)),
    ]
    for asked in (search.submit, search.blur):
        asked(searched, [evaluation, search], [found], api_visibility="private", show_progress_on=[found])
    in_address = show_in_address("evaluation", "organism", "arm", "repeat", "beside", without=NONE)
    for event in events:
        event.then(None, cell, None, js=in_address, api_visibility="private")

    def transcript(evaluation: str, organism: str, arm: str, repeat: int = 0) -> dict[str, Any]:
        """One cell's record as JSON, as it is stored."""
        record = files.record(evaluation, organism, arm, repeat)
        if record is None:
            raise gr.Error("There is no such cell.")
        return record.model_dump(mode="json")

    gr.api(transcript, api_name="transcript")
