"""The method `perplexity_difference`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from diffing_mcp.methods.contract import Cost, CostEstimate, DiffingMethod, Figure, MethodResult, PairSize, View
from diffing_mcp.methods.perplexity_difference.schema import PerplexityDifferenceParams, PerplexityDifferenceResult
from diffing_mcp.methods.perplexity_difference.views import FIGURES, VIEWS, text_groups
from diffing_mcp.methods.texts.beginnings import beginnings, digest_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter, TextGroup
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.answering import AnsweringPair
    from diffing_mcp.model_pairs.specs import PairSpec


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
