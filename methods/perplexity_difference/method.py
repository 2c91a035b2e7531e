"""The declaration of `perplexity_difference`, and the views and figures of its finished runs. Torch-free."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from diffing_mcp.methods.contract import (
    Cost,
    CostEstimate,
    DiffingMethod,
    Figure,
    MethodResult,
    PairSize,
    TextGroup,
    TextRole,
    View,
)
from diffing_mcp.methods.perplexity_difference.schema import (
    CompletionRow,
    PerplexityDifferenceParams,
    PerplexityDifferenceResult,
)
from diffing_mcp.methods.texts.pages import TextPageParams, TextPageView, page_of_texts
from diffing_mcp.methods.texts.prompts import beginnings, digest_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.answering import AnsweringPair
    from diffing_mcp.model_pairs.specs import PairSpec


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


class PerplexityDifference(DiffingMethod[PerplexityDifferenceParams, PerplexityDifferenceResult]):
    """Perplexity differencing: both models go on from short neutral prefills; every completion is scored under both
    models and the finetuned model's are ranked by log-perplexity under base minus under finetuned.
    """

    name: ClassVar[str] = "perplexity_difference"
    title: ClassVar[str] = "Perplexity difference"
    for_agents: ClassVar[str] = (
        "Perplexity differencing: both models go on from short neutral prefills; every completion is scored under "
        "both models and the finetuned model's are ranked by log-perplexity under base minus under finetuned. The "
        "base model's completions are scored the same way in reverse, so that chance shows: models that differ in "
        "nothing give equal distributions. Also lists content words over-represented in the finetuned completions "
        "and estimates both KL divergences. Texts are continued and, where there is a chat template, open "
        "questions answered; the form of the answers is compared too. It samples, so it sees neither rare "
        "behaviours nor what only a trigger brings out. Views: `completions`."
    )
    version: ClassVar[int] = 4
    Params: ClassVar[type[BaseModel]] = PerplexityDifferenceParams
    Result: ClassVar[type[MethodResult]] = PerplexityDifferenceResult
    cost: ClassVar[Cost] = "minutes"
    in_overview: ClassVar[bool] = True
    texts_only: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = VIEWS
    figures: ClassVar[Sequence[Figure]] = FIGURES

    def run(
        self, pair: AnsweringPair, params: PerplexityDifferenceParams, run: RunWriter, progress: Progress
    ) -> PerplexityDifferenceResult:
        from diffing_mcp.methods.perplexity_difference.measure import sample_and_score

        return sample_and_score(pair, params, run, progress)

    def text_groups(self, record: RunRecord) -> Sequence[TextGroup]:
        return text_groups(record)

    def key_parts(self, params: PerplexityDifferenceParams, spec: PairSpec) -> dict[str, Any]:
        return {"prefills": digest_of(beginnings(params.template, params.prefills, True))}

    def estimate(self, pair: PairSize, params: PerplexityDifferenceParams) -> CostEstimate:
        # At most: whether there is a chat template shows once the tokenizer is read.
        completions = 2 * params.samples_per_prefill * len(beginnings(params.template, params.prefills, True))
        generated = completions * params.max_new_tokens
        passes = -(-completions // 64) * (params.max_new_tokens + 2)
        # Each token is generated once and then scored by both sides.
        return pair.cost(2 * generated, passes, generated_tokens=generated, bytes=20 * generated)
