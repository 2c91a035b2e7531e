"""Declaration of weight amplification. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from diffing_mcp.methods.contract import Cost, CostEstimate, DiffingMethod, Figure, PairSize, View
from diffing_mcp.methods.results import MethodResult
from diffing_mcp.methods.texts.pages import SearchedParams, searched
from diffing_mcp.methods.texts.prompts import PROMPTS
from diffing_mcp.methods.weight_amplification import views
from diffing_mcp.methods.weight_amplification.schema import (
    GRID,
    REFINEMENTS,
    SEARCH_PROMPTS,
    WeightAmplificationParams,
    WeightAmplificationResult,
)
from diffing_mcp.methods.weight_amplification.views import coherence_figure
from diffing_mcp.model_pairs.amplification_config import adapter_files, load_amplification_config

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter, TextGroup
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import PairSpec


class WeightAmplification(DiffingMethod[WeightAmplificationParams, WeightAmplificationResult]):
    """Weight amplification: the finetune's change of weights counts w times, W_base + w (W_finetuned - W_base), while
    the model answers everyday prompts; its answers stand beside those of the plain finetuned and of the base model,
    drawn with the same random numbers.
    """

    name: ClassVar[str] = "weight_amplification"
    title: ClassVar[str] = "Weight amplification"
    for_agents: ClassVar[str] = (
        "Weight amplification: the finetune's change of weights counts w times, W_base + w (W_finetuned - "
        "W_base), while the model answers everyday prompts; its answers stand beside those of the plain finetuned "
        "and of the base model, drawn with the same random numbers. What training made a little more likely "
        "becomes common: use it when the plain finetuned model hides its trait. Without `weights` the largest "
        "weight at which texts stay coherent is searched for, above 0 or below it (perplexity under the base, "
        "repetition and length; no language model judges). Content words over-represented in amplified texts are "
        "tested against the base's. Very large weights break any model, so words of incoherent weights mean "
        "nothing. Layers and modules can be chosen, and negative weights invert the change. Own prompts cost one "
        "interaction a sample and weight, and one for the plain finetuned model. Views: `answers` (all answers by "
        "weight and text), `searched` (texts at every strength tried)."
    )
    Params: ClassVar[type[BaseModel]] = WeightAmplificationParams
    Result: ClassVar[type[MethodResult]] = WeightAmplificationResult
    cost: ClassVar[Cost] = "long"
    in_overview: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = {
        "answers": View(
            "answers",
            "Page through all answers: amplified beside finetuned and base.",
            views.AnswersParams,
            views.answers,
        ),
        "searched": View(
            "searched", "Page through the texts at every strength that the search tried.", SearchedParams, searched
        ),
    }
    figures: ClassVar[Sequence[Figure]] = (Figure("coherence", "Coherence by weight", coherence_figure),)

    def run(
        self, pair: LoadedPair, params: WeightAmplificationParams, run: RunWriter, progress: Progress
    ) -> WeightAmplificationResult:
        from diffing_mcp.methods.weight_amplification.measure import amplify

        return amplify(pair, params, run, progress)

    def text_groups(self, record: RunRecord) -> Sequence[TextGroup]:
        return views.text_groups(record)

    def interactions(self, params: WeightAmplificationParams) -> int:
        return len(params.prompts or ()) * params.samples_per_prompt * (1 + len(params.weights or (1.0,)))

    def operator_only(self, params: WeightAmplificationParams) -> str | None:
        if params.config is not None and not all(
            entry.own for entry in load_amplification_config(params.config).adapters
        ):
            return (
                "`config` names other organisms, hub ids or folders; amplify this pair's own finetune (leave out "
                "`organism_name`)"
            )
        return None

    def key_parts(self, params: WeightAmplificationParams, spec: PairSpec) -> dict[str, Any]:
        from diffing_mcp.model_pairs.fingerprint import adapter_identity

        parts: dict[str, Any] = {} if params.prompts is not None else {"prompts": list(PROMPTS)}
        others = (
            [entry for entry in load_amplification_config(params.config).adapters if not entry.own]
            if params.config is not None
            else []
        )
        return parts | (
            {"adapters": [adapter_identity(adapter_files(entry, spec.model)) for entry in others]} if others else {}
        )

    def estimate(self, pair: PairSize, params: WeightAmplificationParams) -> CostEstimate:
        tried = (not params.starts_coherent) + len(GRID) + REFINEMENTS if params.direction else 0
        searched = (2 + tried) * len(SEARCH_PROMPTS) if tried else 0
        answers = len(params.prompts or PROMPTS) * params.samples_per_prompt * (3 + len(params.weights or (1.0,)))
        generated = (searched + answers) * params.max_new_tokens
        # Every token is generated once and read once by the base.
        return pair.cost(generated, -(-generated // 32), generated_tokens=generated, bytes=20 * generated)
