"""Views and figures of a finished run, from its stored table. Torch-free."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from diffing_mcp.methods.contract import Figure, TextGroup, TextRole, View
from diffing_mcp.methods.perplexity_difference.schema import CompletionRow
from diffing_mcp.methods.texts.pages import TextPageParams, TextPageView, page_of_texts

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord


class CompletionsParams(TextPageParams):
    """Which completions to list."""

    writer: Literal["finetuned", "base"] = Field("finetuned", description="The model that wrote them.")
    order: Literal["difference", "as_sampled"] = Field(
        "difference", description="`difference`: least expected by the other model first."
    )


class CompletionsView(TextPageView):
    """A page of completions."""

    rows: list[CompletionRow]


def completions(record: RunRecord, params: CompletionsParams) -> CompletionsView:
    """A page of completions, short ones included."""
    rows = [row for row in record.table("completions").to_pylist() if row["writer"] == params.writer]
    if params.order == "difference":
        rows.sort(key=lambda row: -row["difference"])
    page = page_of_texts(rows, params, searched=("text",), cut=("text",))
    other = "base" if params.writer == "finetuned" else "finetuned"
    return CompletionsView(
        rows=[
            CompletionRow(
                prefill=row["prefill"],
                chat=row.get("chat", False),
                completion=row["text"],
                difference=row["difference"],
                perplexity_own=math.exp(-row[f"log_prob_{params.writer}"]),
                perplexity_other=math.exp(-row[f"log_prob_{other}"]),
                tokens=row["tokens"],
            )
            for row in page.rows
        ],
        total=page.total,
        next_offset=page.next_offset,
    )


def text_groups(record: RunRecord) -> list[TextGroup]:
    """The completions of either model."""
    table = record.table("completions", ["writer", "prefill", "text"]).to_pylist()
    roles: dict[str, TextRole] = {"finetuned": "finetuned", "base": "control"}
    groups = []
    for writer, role in roles.items():
        rows = [row for row in table if row["writer"] == writer]
        groups.append(
            TextGroup(
                name=writer, role=role, prompts=[row["prefill"] for row in rows], texts=[row["text"] for row in rows]
            )
        )
    return groups


def distribution(record: RunRecord) -> dict[str, Any]:
    """Log-perplexity differences of both models' completions; equal models give two equal heaps."""
    rows = record.table("completions", ["writer", "difference", "prefill"]).to_pylist()
    data = [
        {
            "type": "box",
            "boxpoints": "all",
            "name": f"written by {writer}",
            "x": [row["difference"] for row in rows if row["writer"] == writer],
            "text": [row["prefill"] for row in rows if row["writer"] == writer],
        }
        for writer in ("finetuned", "base")
    ]
    return {
        "data": data,
        "layout": {
            "xaxis": {"title": {"text": "log-perplexity under the other model minus under its own, nats a token"}}
        },
    }


VIEWS = {
    "completions": View(
        "completions", "Page through all completions of either model, filtered by text.", CompletionsParams, completions
    )
}
FIGURES = (Figure("distribution", "Log-perplexity difference of the completions", distribution),)
