"""Page "Evaluations": grades per organism and arm with their spread, verdicts, and false positives on nulls."""

from __future__ import annotations

from typing import Any

import gradio as gr
import plotly.graph_objects as go
from markupsafe import Markup

from diffing_mcp.agents.records import EvaluationRecord
from diffing_mcp.agents.summary import Row, Summary, summarise
from diffing_mcp.graders.statistics import Interval
from diffing_mcp.ui.addresses import link, show_in_address
from diffing_mcp.ui.files import Evaluation, PanelFiles, kept
from diffing_mcp.ui.html import alert, chip, element, empty, heading, join, seconds_text, section, table, tiles
from diffing_mcp.ui.theme import ARM_COLOURS, GRID, plot_layout
from diffing_mcp.ui.widgets import picker

MEASURES = {"grade": "LLM grade, 1-5", "fact_score": "Fact grade, 1-5", "fact_recall": "Fact recall, 0-1"}
_REFRESH_SECONDS = 5
_LABEL = 24
"""Characters of an organism's name beside the plot."""


def value_of(record: EvaluationRecord, measure: str) -> float | None:
    """One cell's value of a measure; None when it does not have one (no LLM grader; recall on a null)."""
    if record.status != "completed":
        return None
    if measure == "grade":
        return record.mean_score
    if record.fact_recall is None or (measure == "fact_recall" and record.null):
        return None
    return record.fact_recall.recall if measure == "fact_recall" else record.fact_recall.score


def default_measure(evaluation: Evaluation | None) -> str:
    """The LLM grade where there is one, else the deterministic grade."""
    graded = evaluation is not None and any(record.mean_score is not None for record in evaluation.records)
    return "grade" if graded else "fact_score"


def grade_figure(evaluation: Evaluation, measure: str) -> dict[str, Any] | None:
    """Every repeat as a dot, the mean as a diamond with its 95% interval; a row an organism, a colour an arm. None when
    no cell has a value.
    """
    summary = summarise(evaluation.records)
    rows = [(row, interval) for row in summary.rows if (interval := getattr(row, measure)) is not None]
    if not rows:
        return None
    organisms = list(
        dict.fromkeys(row.organism for row in summary.rows if any(row.organism == other.organism for other, _ in rows))
    )
    arms = list(dict.fromkeys(row.arm for row, _ in rows))
    nulls = {row.organism for row in summary.rows if row.null}
    places = {organism: len(organisms) - 1 - place for place, organism in enumerate(organisms)}
    data: list[dict[str, Any]] = []
    for number, arm in enumerate(arms):
        shift = 0.0 if len(arms) == 1 else 0.17 - 0.34 * number / (len(arms) - 1)
        cells = [
            (record, value)
            for record in evaluation.records
            if record.arm == arm and (value := value_of(record, measure)) is not None
        ]
        mine = [(row, interval) for row, interval in rows if row.arm == arm]
        colour = ARM_COLOURS.get(arm, "#6B7280")
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "showlegend": False,
                "x": [value for _, value in cells],
                # Repeats with equal grades lie beside each other instead of on top of each other.
                "y": [places[record.organism] + shift + 0.03 * ((record.repeat % 5) - 2) for record, _ in cells],
                "marker": {"color": colour, "opacity": 0.45, "size": 9},
                "customdata": [f"{record.organism}, {record.arm}, repeat {record.repeat}" for record, _ in cells],
                "hovertemplate": "%{customdata}: %{x:.2f}<extra></extra>",
            }
        )
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": arm,
                "x": [interval.estimate for _, interval in mine],
                "y": [places[row.organism] + shift for row, _ in mine],
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [interval.high - interval.estimate if interval.count > 1 else 0 for _, interval in mine],
                    "arrayminus": [
                        interval.estimate - interval.low if interval.count > 1 else 0 for _, interval in mine
                    ],
                    "thickness": 1.8,
                    "width": 5,
                },
                "marker": {"color": colour, "symbol": "diamond", "size": 13},
                "customdata": [f"{row.organism}, {row.arm}, mean of {interval.count}" for row, interval in mine],
                "hovertemplate": "%{customdata}: %{x:.2f}<extra></extra>",
            }
        )
    span = [-0.04, 1.04] if measure == "fact_recall" else [0.8, 5.2]
    return {
        "data": data,
        "layout": {
            "xaxis": {
                "title": {"text": MEASURES[measure]},
                "range": span,
                "zeroline": False,
                "dtick": 0.25 if measure == "fact_recall" else 1,
            },
            "yaxis": {
                "tickmode": "array",
                "tickvals": [places[organism] for organism in organisms],
                "ticktext": [_shortened(organism) + (" (null)" if organism in nulls else "") for organism in organisms],
                "range": [-0.6, len(organisms) - 0.4],
                "zeroline": False,
                "gridcolor": GRID,
            },
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "margin": {"l": 130, "r": 24, "t": 36, "b": 52},
            "hovermode": "closest",
        },
    }


def _shortened(name: str) -> str:
    """A name that leaves a plot its room: of two folders or hub ids both ends matter. The table has it whole."""
    return name if len(name) <= _LABEL else f"{name[: _LABEL // 2]}…{name[-_LABEL // 2 :]}"


def summary_html(evaluation: Evaluation | None) -> Markup:
    """What the evaluation was, how far it is, and the rates that matter most."""
    if evaluation is None:
        return empty(
            "No evaluation yet",
            (
                "An evaluation lets investigators loose on blinded pairs and grades what they find. The baseline "
                "investigator needs no key and no GPU."
            ),
            "diffing evaluate --organisms cake_bake,control,identical",
        )
    plan, records = evaluation.plan, evaluation.records
    summary = summarise(records)
    share = min(1.0, len(records) / max(1, evaluation.cells))
    progress = Markup(f"<div class='d-bar'><div style='width:{100 * share:.0f}%'></div></div>")
    shown: list[tuple[str, Any, str]] = [
        ("Investigator", plan.investigator, f"grader: {plan.graded_by or 'fact recall only'}")
    ]
    shown.append(
        (
            "Cells finished",
            join([len(records), element("small", f" / {evaluation.cells}")]),
            progress if share < 1 else "complete",
        )
    )
    for arm in summary.arms:
        if arm.topic_named is not None:
            shown.append((f"Topic named, {arm.arm}", _rate(arm.topic_named), "on pairs that were taught something"))
    false = [record for record in records if record.null and record.status == "completed"]
    if false:
        wrong = sum(record.false_positive for record in false)
        kind = "good" if wrong == 0 else "bad"
        shown.append(
            (
                "False positives on nulls",
                join([wrong, element("small", f" / {len(false)}")]),
                chip("none claimed" if wrong == 0 else "claims on nulls", kind),
            )
        )
    return tiles(shown)


def table_html(evaluation: Evaluation | None) -> Markup:
    """The table below the plot, the rates in words, and cells that failed."""
    if evaluation is None:
        return Markup("")
    if not evaluation.records:
        return empty("Nothing finished yet", "The first cell appears here as soon as it is graded.")
    summary = summarise(evaluation.records)
    parts = [
        section(
            "Grades by organism and arm",
            _summary_table(summary, evaluation.plan.id),
            element("ul", *(element("li", note) for note in summary.notes()), classes="d-list plain d-note"),
        )
    ]
    failed = [record for record in evaluation.records if record.status == "failed"]
    if failed:
        parts.append(
            section(
                "Cells that failed",
                *(
                    alert(f"{record.organism}, {record.arm}, repeat {record.repeat}: {record.error}")
                    for record in failed
                ),
            )
        )
    return join(parts)


def _summary_table(summary: Summary, evaluation: str) -> Markup:
    with_grade = any(row.grade for row in summary.rows)
    headers = [
        "organism",
        "arm",
        "repeats",
        *(["LLM grade"] if with_grade else []),
        "fact grade",
        "fact recall",
        "topic named",
        "verdict",
        "calls",
        "asked",
        "time",
    ]
    rows, before = [], ""
    for row in summary.rows:
        name = element("span", row.organism, classes="d-again" if row.organism == before else "")
        null = chip("null") if row.null and row.organism != before else ""
        before = row.organism
        rows.append(
            [
                join([name, " ", null]),
                link(row.arm, "transcripts", evaluation=evaluation, organism=row.organism, arm=row.arm),
                join([row.completed, chip(f"{row.failed} failed", "bad") if row.failed else ""]),
                *([_interval(row.grade)] if with_grade else []),
                _interval(row.fact_score),
                _interval(row.fact_recall),
                _count(row.topic_named),
                _verdicts(row),
                _plain(row.tool_calls),
                _plain(row.interactions),
                seconds_text(row.seconds) if row.seconds is not None else "–",
            ]
        )
    return table(headers, rows, [2, *range(3, 6 + with_grade), *range(len(headers) - 3, len(headers))])


def _verdicts(row: Row) -> Markup:
    """What was concluded, coloured by whether that is right for this organism."""
    right = "no_meaningful_difference" if row.null else "difference"
    parts = []
    for verdict, count in row.verdicts.items():
        words = verdict.replace("_meaningful_", " ").replace("_", " ") + (f" ×{count}" if row.completed > 1 else "")
        kind = "warn" if verdict == "inconclusive" else "good" if verdict == right else "bad"
        parts.append(chip(words, kind))
    return join(parts) if parts else Markup("–")


def _interval(interval: Interval | None) -> Markup:
    if interval is None:
        return Markup("–")
    spread = (
        element("small", f"[{interval.low:.2f}, {interval.high:.2f}]", classes="d-interval")
        if interval.count > 1
        else ""
    )
    return join([f"{interval.estimate:.2f}", spread])


def _count(rate: Interval | None) -> Markup:
    if rate is None:
        return Markup("–")
    hits = round(rate.estimate * rate.count)
    return chip(f"{hits} of {rate.count}", "good" if hits == rate.count else "warn" if hits else "bad")


def _rate(rate: Interval) -> Markup:
    return join([round(rate.estimate * rate.count), element("small", f" / {rate.count}")])


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}".removesuffix(".0")


def build(files: PanelFiles, demo: gr.Blocks) -> None:
    """Lay out the page and connect it."""

    def shown(identifier: str | None, measure: str | None) -> tuple[Markup, Any, Markup]:
        evaluation = files.evaluation(identifier)
        figure = (
            grade_figure(evaluation, measure if measure in MEASURES else default_measure(evaluation))
            if evaluation
            else None
        )
        height = 130 + 62 * len({record.organism for record in evaluation.records}) if evaluation else 200
        plot = go.Figure(plot_layout(figure, height), skip_invalid=True) if figure else None
        return summary_html(evaluation), gr.update(value=plot, visible=plot is not None), table_html(evaluation)

    def picked(identifier: str | None) -> tuple[Any, ...]:
        measure = default_measure(files.evaluation(identifier))
        return (measure, *shown(identifier, measure))

    def opened(identifier: str | None) -> tuple[Any, ...]:
        choices = files.evaluation_choices()
        chosen = kept(choices, identifier)
        evaluation = files.evaluation(chosen)
        return (
            gr.update(choices=choices, value=chosen),
            *picked(chosen),
            evaluation is not None and not evaluation.complete,
        )

    def addressed(request: gr.Request) -> tuple[Any, ...]:
        return opened(request.query_params.get("evaluation"))

    gr.HTML(
        heading(
            "Evaluations",
            (
                "What investigators concluded about blinded pairs, graded against what was really taught. Dots are "
                "repeats, diamonds their mean with a 95% interval."
            ),
        )
    )
    with gr.Row(elem_classes="d-controls"):
        evaluation = picker([], label="Evaluation", scale=3, elem_id="results-evaluation")
        measure = gr.Radio(
            [(label, name) for name, label in MEASURES.items()],
            label="Measure",
            value="fact_score",
            scale=5,
            min_width=300,
        )
        live = gr.Checkbox(False, label="Live", scale=1, min_width=90)
        refresh = gr.Button("Refresh", scale=0, min_width=110)
    tiles_html = gr.HTML(elem_id="results-tiles")
    plot = gr.Plot(show_label=False, container=False, elem_id="results-plot", visible=False)
    rows = gr.HTML(elem_id="results-table")
    timer = gr.Timer(_REFRESH_SECONDS, active=False)

    parts: list[Any] = [tiles_html, plot, rows]
    whole = [evaluation, measure, *parts, live]
    demo.load(addressed, None, whole, api_visibility="private", show_progress="hidden")
    refresh.click(opened, [evaluation], whole, api_visibility="private")
    evaluation.input(picked, [evaluation], [measure, *parts], api_visibility="private")
    evaluation.input(None, [evaluation], None, js=show_in_address("evaluation"), api_visibility="private")
    measure.input(shown, [evaluation, measure], parts, api_visibility="private")
    timer.tick(shown, [evaluation, measure], parts, api_visibility="private", show_progress="hidden")
    live.change(lambda on: gr.Timer(active=bool(on)), [live], [timer], api_visibility="private")

    def results(evaluation: str) -> dict[str, Any]:
        """Plan and summary of one evaluation as JSON."""
        found = files.evaluation(evaluation)
        if found is None:
            raise gr.Error(f"There is no evaluation {evaluation!r}.")
        return {"plan": found.plan.model_dump(mode="json"), "summary": summarise(found.records).model_dump(mode="json")}

    gr.api(results, api_name="results")
