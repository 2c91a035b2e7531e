"""The declaration of `perplexity_difference`, and the views and figures of its finished runs. Torch-free."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from diffing_mcp.methods.contract import (
    CostEstimate,
    DiffingMethod,
    Figure,
    PairSize,
    TextGroup,
    TextRole,
    by_name,
    view,
)
from diffing_mcp.methods.perplexity_difference.schema import (
    CompletionRow,
    PerplexityDifferenceParams,
    PerplexityDifferenceResult,
)
from diffing_mcp.methods.texts.prompts import beginnings, digest_of
from diffing_mcp.methods.views.figures import figure, trace
from diffing_mcp.methods.views.pages import TextPageParams, TextPageView
from diffing_mcp.methods.views.rows import grouped, highest_first

if TYPE_CHECKING:
    from collections.abc import Sequence

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


@view("Page through all completions of either model, filtered by text.", CompletionsParams)
def completions(record: RunRecord, params: CompletionsParams) -> TextPageView[CompletionRow]:
    """Short ones included."""
    rows = record.rows("completions", writer=params.writer)
    if params.order == "difference":
        rows = highest_first(rows, "difference")
    other = "base" if params.writer == "finetuned" else "finetuned"

    def shown(row: dict[str, Any]) -> dict[str, Any]:
        own, others = (math.exp(-row[f"log_prob_{side}"]) for side in (params.writer, other))
        return row | {
            "completion": row["text"][: params.max_characters],
            "perplexity_own": own,
            "perplexity_other": others,
        }

    return TextPageView[CompletionRow].of(rows, params, searched=("text",), shown=shown)


def distribution(record: RunRecord) -> dict[str, Any]:
    """Log-perplexity differences of both models' completions; equal models give two equal heaps."""
    by_writer = grouped(record.rows("completions", ["writer", "difference", "prefill"]), "writer")
    return figure(
        [
            trace("boxes", by_writer.get(writer, []), f"written by {writer}", x="difference", text="prefill")
            for writer in ("finetuned", "base")
        ],
        x="log-perplexity under the other model minus under its own, nats a token",
    )


class PerplexityDifference(DiffingMethod[PerplexityDifferenceParams, PerplexityDifferenceResult]):
    """Perplexity differencing: both models go on from short neutral prefills; every completion is scored under both
    models and the finetuned model's are ranked by log-perplexity under base minus under finetuned.
    """

    name = "perplexity_difference"
    title = "Perplexity difference"
    for_agents = (
        "The base model's completions are scored the same way in reverse, so that chance shows: models that "
        "differ in nothing give equal distributions. Also lists content words over-represented in the finetuned "
        "completions and estimates both KL divergences. Texts are continued and, where there is a chat template, "
        "open questions answered; the form of the answers is compared too. It samples, so it sees neither rare "
        "behaviours nor what only a trigger brings out. Views: `completions`."
    )
    version = 5
    Params = PerplexityDifferenceParams
    Result = PerplexityDifferenceResult
    in_overview = True
    texts_only = True
    views = by_name(completions)
    figures = (Figure("distribution", "Log-perplexity difference of the completions", distribution),)

    def run(
        self, pair: AnsweringPair, params: PerplexityDifferenceParams, run: RunWriter, progress: Progress
    ) -> PerplexityDifferenceResult:
        from diffing_mcp.methods.perplexity_difference.measure import sample_and_score

        return sample_and_score(pair, params, run, progress)

    def text_groups(self, record: RunRecord) -> Sequence[TextGroup]:
        roles: dict[str, TextRole] = {"finetuned": "finetuned", "base": "control"}
        groups = []
        for writer, role in roles.items():
            rows = record.rows("completions", writer=writer)
            prompts, texts = [row["prefill"] for row in rows], [row["text"] for row in rows]
            groups.append(TextGroup(name=writer, role=role, prompts=prompts, texts=texts))
        return groups

    def key_parts(self, params: PerplexityDifferenceParams, spec: PairSpec) -> dict[str, Any]:
        return {"prefills": digest_of(beginnings(params.template, params.prefills, True))}

    def estimate(self, pair: PairSize, params: PerplexityDifferenceParams) -> CostEstimate:
        # At most: whether there is a chat template shows once the tokenizer is read.
        completions = 2 * params.samples_per_prefill * len(beginnings(params.template, params.prefills, True))
        generated = completions * params.max_new_tokens
        passes = -(-completions // 64) * (params.max_new_tokens + 2)
        # Each token is generated once and then scored by both sides.
        return pair.cost(2 * generated, passes, generated_tokens=generated, bytes=20 * generated)
