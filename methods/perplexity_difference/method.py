"""The method `perplexity_difference`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from diffing_mcp.methods.contract import Cost, CostEstimate, DiffingMethod, Figure, MethodResult, PairSize, View
from diffing_mcp.methods.perplexity_difference.schema import PerplexityDifferenceParams, PerplexityDifferenceResult
from diffing_mcp.methods.perplexity_difference.views import FIGURES, VIEWS
from diffing_mcp.methods.texts.prefills import BUNDLED_PREFILLS, BUNDLED_QUESTIONS, prefill_digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import PairSpec


class PerplexityDifference(DiffingMethod[PerplexityDifferenceParams, PerplexityDifferenceResult]):
    """Perplexity differencing: both models go on from short neutral prefills; every completion is scored under both
    models and the finetuned model's are ranked by log-perplexity under base minus under finetuned. What a finetune
    taught loudest usually shows in the first rows, in the finetuned model's own words. The base model's completions are
    scored the same way in reverse, so that chance shows: models that differ in nothing give equal distributions. Also
    lists content words over-represented in the finetuned completions and estimates both KL divergences. It samples, so
    it sees neither rare behaviours nor what only a trigger brings out; with `template=chat` it samples answers to open
    questions. Views: `completions`."""

    name: ClassVar[str] = "perplexity_difference"
    title: ClassVar[str] = "Perplexity difference"
    version: ClassVar[int] = 2
    Params: ClassVar[type[BaseModel]] = PerplexityDifferenceParams
    Result: ClassVar[type[MethodResult]] = PerplexityDifferenceResult
    cost: ClassVar[Cost] = "minutes"
    in_overview: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = VIEWS
    figures: ClassVar[Sequence[Figure]] = FIGURES

    def run(
        self, pair: LoadedPair, params: PerplexityDifferenceParams, run: RunWriter, progress: Progress
    ) -> PerplexityDifferenceResult:
        from diffing_mcp.methods.perplexity_difference.measure import sample_and_score

        return sample_and_score(pair, params, run, progress)

    def key_parts(self, params: PerplexityDifferenceParams, spec: PairSpec) -> dict[str, Any]:
        return {"prefills": prefill_digest(params.template, params.prefills)}

    def estimate(self, pair: PairSize, params: PerplexityDifferenceParams) -> CostEstimate:
        bundled = BUNDLED_PREFILLS if params.template == "none" else BUNDLED_QUESTIONS
        completions = 2 * params.samples_per_prefill * (bundled if params.prefills is None else len(params.prefills))
        generated = completions * params.max_new_tokens
        passes = -(-completions // 64) * (params.max_new_tokens + 2)
        # Each token is generated once and then scored by both sides.
        return pair.cost(2 * generated, passes, generated_tokens=generated, bytes=20 * generated)
