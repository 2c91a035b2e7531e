"""Drill-down and plots over finished weight amplification, from its stored tables. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from diffing_mcp.methods.contract import TextGroup
from diffing_mcp.methods.texts.pages import TextPageParams, TextPageView, page_of_texts, searched_groups, series_of
from diffing_mcp.methods.weight_amplification.schema import Answer

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord


class AnswersParams(TextPageParams):
    """Which answers."""

    limit: int = Field(5, ge=1, le=100)
    weight: float | None = Field(None, description="Only this weight of the run (0.01 near).")
    within: Literal["amplified", "finetuned", "base"] = Field(
        "amplified", description="Which of the texts `contains` looks in (besides the prompt)."
    )


class AnswersView(TextPageView):
    """A page of answers."""

    rows: list[Answer]


def answers(record: RunRecord, params: AnswersParams) -> AnswersView:
    """A page of answers: amplified beside finetuned and base."""
    rows = [
        row
        for row in record.table("answers").to_pylist()
        if params.weight is None or abs(row["weight"] - params.weight) <= 0.01
    ]
    page = page_of_texts(rows, params, searched=("prompt", params.within), cut=("amplified", "finetuned", "base"))
    return AnswersView(rows=[Answer(**row) for row in page.rows], total=page.total, next_offset=page.next_offset)


def text_groups(record: RunRecord) -> list[TextGroup]:
    """The texts of each weight above 1, those of the plain models, and as controls of weights up to 0 (weights between
    dampen what was taught).
    """
    table = record.table("answers").to_pylist()
    coherent = {("finetuned", row["weight"]): row["coherent"] for row in record.table("weights").to_pylist()}
    configured = (
        record.manifest.params.get("config") is not None
    )  # its own weights are then what amplifies, and 1 leaves them as they are
    groups: list[TextGroup] = []
    for number, weight in enumerate(dict.fromkeys(row["weight"] for row in table)):
        rows = [row for row in table if row["weight"] == weight]
        prompts = [row["prompt"] for row in rows]
        amplified, finetuned, base = ([row[name] for row in rows] for name in ("amplified", "finetuned", "base"))
        if number == 0:
            groups.append(TextGroup(name="finetuned", role="finetuned", prompts=prompts, texts=finetuned))
            groups.append(TextGroup(name="base", role="control", prompts=prompts, texts=base))
        groups.append(
            TextGroup(
                name=f"weight {weight:g}",
                role="amplified" if weight > (0 if configured else 1) else "finetuned" if weight > 0 else "control",
                strength=weight,
                series=series_of("finetuned", weight),
                coherent=coherent.get(("finetuned", weight)),
                prompts=prompts,
                texts=amplified,
            )
        )
    return [*groups, *searched_groups(record, coherent)]


def coherence_figure(record: RunRecord) -> dict[str, Any]:
    """Share of coherent texts by weight."""
    rows = sorted(record.table("weights").to_pylist(), key=lambda row: row["weight"])
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [row["weight"] for row in rows],
                "y": [row["coherent"] for row in rows],
            }
        ],
        "layout": {
            "xaxis": {"title": {"text": "weight of the difference"}},
            "yaxis": {"title": {"text": "share of coherent texts"}, "range": [0, 1.02]},
        },
    }
