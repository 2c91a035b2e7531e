"""Drill-down and plots over finished steering, from its stored tables. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from diffing_mcp.methods.contract import TextGroup, TextRole
from diffing_mcp.methods.steering.schema import AnswerAndControl
from diffing_mcp.methods.texts.pages import TextPageParams, TextPageView, page_of_texts, searched_groups, series_of

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord


class AnswersParams(TextPageParams):
    """Which answers."""

    limit: int = Field(5, ge=1, le=100)
    strength: float | None = Field(None, description="Only this strength of the run (0.01 near).")
    side: Literal["base", "finetuned"] | None = Field(None, description="Only this model.")
    within: Literal["steered", "unsteered", "random"] = Field(
        "steered",
        description=(
            "Which of the texts `contains` looks in (besides the prompt); `random` is the control under a random "
            "direction."
        ),
    )


class AnswersView(TextPageView):
    """A page of answers."""

    rows: list[AnswerAndControl]


def answers(record: RunRecord, params: AnswersParams) -> AnswersView:
    """A page of answers: steered, unsteered, and as a control steered by a random direction."""
    rows = [
        row
        for row in record.table("answers").to_pylist()
        if (params.strength is None or abs(row["strength"] - params.strength) <= 0.01)
        and params.side in (None, row["side"])
    ]
    page = page_of_texts(rows, params, searched=("prompt", params.within), cut=("steered", "unsteered", "random"))
    return AnswersView(
        rows=[AnswerAndControl(**row) for row in page.rows], total=page.total, next_offset=page.next_offset
    )


def text_groups(record: RunRecord) -> list[TextGroup]:
    """Steered texts of each model and strength; the unsteered base and random directions are controls (unsteered texts
    are the same at all strengths).
    """
    table = record.table("answers").to_pylist()
    coherent = {(row["side"], row["strength"]): row["coherent"] for row in record.table("strengths").to_pylist()}
    groups: list[TextGroup] = []
    for side in dict.fromkeys(row["side"] for row in table):
        plain: TextRole = "finetuned" if side == "finetuned" else "control"
        for number, strength in enumerate(dict.fromkeys(row["strength"] for row in table if row["side"] == side)):
            rows = [row for row in table if row["side"] == side and row["strength"] == strength]
            prompts = [row["prompt"] for row in rows]
            steered, unsteered, chance = ([row[name] for row in rows] for name in ("steered", "unsteered", "random"))
            if number == 0:
                groups.append(TextGroup(name=f"{side} unsteered", role=plain, prompts=prompts, texts=unsteered))
            groups.append(
                TextGroup(
                    name=f"{side} {strength:+g}",
                    role="amplified" if strength > 0 else "control",
                    strength=strength,
                    series=series_of(side, strength),
                    coherent=coherent.get((side, strength)),
                    prompts=prompts,
                    texts=steered,
                )
            )
            groups.append(
                TextGroup(
                    name=f"{side} {strength:+g} random direction",
                    role="control",
                    strength=strength,
                    prompts=prompts,
                    texts=chance,
                )
            )
    return [*groups, *searched_groups(record, coherent)]


def coherence_figure(record: RunRecord) -> dict[str, Any]:
    """Share of coherent texts by strength."""
    rows = sorted(record.table("strengths").to_pylist(), key=lambda row: row["strength"])
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": side,
            "x": [row["strength"] for row in rows if row["side"] == side],
            "y": [row["coherent"] for row in rows if row["side"] == side],
        }
        for side in sorted({row["side"] for row in rows})
    ]
    return {
        "data": data,
        "layout": {
            "xaxis": {"title": {"text": "strength"}},
            "yaxis": {"title": {"text": "share of coherent texts"}, "range": [0, 1]},
        },
    }
