"""Views and figures of a finished run, from its stored table. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from diffing_mcp.methods.contract import Figure, TextGroup, View
from diffing_mcp.methods.contrastive_decoding.schema import AmplifiedText
from diffing_mcp.methods.texts.pages import TextPageParams, TextPageView, page_of_texts, series_of

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord


class TextsParams(TextPageParams):
    """Which texts."""

    alpha: float | None = Field(
        None, description="Only this alpha of the run; 0 is the plain finetuned model, -1 the base."
    )
    order: Literal["difference", "as_written"] = Field(
        "difference", description="`difference`: what the base expects least first."
    )


class TextsView(TextPageView):
    """A page of texts."""

    alphas: list[float] = Field(description="Alphas of the run.")
    rows: list[AmplifiedText]


def texts(record: RunRecord, params: TextsParams) -> TextsView:
    """A page of texts at every alpha, controls included."""
    table = record.table("texts").to_pylist()
    rows = [row for row in table if params.alpha is None or abs(row["alpha"] - params.alpha) <= 0.01]
    if params.order == "difference":
        rows.sort(key=lambda row: -row["difference"])
    page = page_of_texts(rows, params, searched=("prompt", "text"), cut=("text",))
    alphas = sorted({row["alpha"] for row in table})
    return TextsView(
        alphas=alphas,
        rows=[AmplifiedText.model_validate(row) for row in page.rows],
        total=page.total,
        next_offset=page.next_offset,
    )


def text_groups(record: RunRecord) -> list[TextGroup]:
    """The texts of each alpha: above 0 amplified, 0 the plain finetuned model, below it the base and the opposite
    direction.
    """
    table = record.table("texts").to_pylist()
    coherent = {row["alpha"]: row["coherent"] for row in record.result_json()["alphas"]}
    groups = []
    for alpha in dict.fromkeys(row["alpha"] for row in table):
        rows = [row for row in table if row["alpha"] == alpha]
        groups.append(
            TextGroup(
                name=f"alpha {alpha:+g}" if alpha else "finetuned",
                role="amplified" if alpha > 0 else "finetuned" if alpha == 0 else "control",
                strength=alpha,
                series=series_of("finetuned", alpha) if alpha > 0 else None,
                coherent=coherent.get(alpha),
                prompts=[row["prompt"] for row in rows],
                texts=[row["text"] for row in rows],
            )
        )
    return groups


def differences(record: RunRecord) -> dict[str, Any]:
    """How much more the finetuned model expects the texts than the base, by alpha: a finetune that taught nothing stays
    near zero.
    """
    rows = record.table("texts", ["alpha", "difference", "prompt"]).to_pylist()
    data = [
        {
            "type": "box",
            "boxpoints": "all",
            "name": f"{alpha:+.3g}",
            "y": [row["difference"] for row in rows if row["alpha"] == alpha],
            "text": [row["prompt"] for row in rows if row["alpha"] == alpha],
        }
        for alpha in sorted({row["alpha"] for row in rows})
    ]
    return {
        "data": data,
        "layout": {
            "showlegend": False,
            "xaxis": {"title": {"text": "alpha (0: finetuned, -1: base)"}},
            "yaxis": {"title": {"text": "log-probability, finetuned minus base, nats a token"}},
        },
    }


VIEWS = {
    "texts": View("texts", "Page through all texts by alpha, controls included, filtered by text.", TextsParams, texts)
}
FIGURES = (Figure("differences", "How much more the finetuned model expects the texts", differences),)
