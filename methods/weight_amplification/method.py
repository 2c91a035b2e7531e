"""The declaration of `weight_amplification`, and the views and figures of its finished runs. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from diffing_mcp.methods.contract import CostEstimate, DiffingMethod, PairSize, TextGroup, TextRole, by_name, view
from diffing_mcp.methods.texts.amplified import (
    coherence_figure,
    cost_of_answers,
    group_at,
    group_of,
    searched,
    searched_groups,
)
from diffing_mcp.methods.texts.prompts import PROMPTS
from diffing_mcp.methods.views.pages import TextPageParams, TextPageView, page_size
from diffing_mcp.methods.views.rows import grouped, near
from diffing_mcp.methods.weight_amplification.schema import (
    GRID,
    REFINEMENTS,
    SEARCH_PROMPTS,
    AmplifiedAnswer,
    WeightAmplificationParams,
    WeightAmplificationResult,
)
from diffing_mcp.model_pairs.amplification_config import adapter_files, load_amplification_config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import PairSpec


class AnswersParams(TextPageParams):
    """Which answers."""

    limit: int = page_size(5)
    weight: float | None = Field(None, description="Only this weight of the run (0.01 near).")
    within: Literal["amplified", "finetuned", "base"] = Field(
        "amplified", description="Which of the texts `contains` looks in (besides the prompt)."
    )


@view("Page through all answers: amplified beside finetuned and base.", AnswersParams)
def answers(record: RunRecord, params: AnswersParams) -> TextPageView[AmplifiedAnswer]:
    rows = near(record.rows("answers"), "weight", params.weight)
    return TextPageView[AmplifiedAnswer].of(
        rows, params, searched=("prompt", params.within), cut=("amplified", "finetuned", "base")
    )


def _mixes(config: str) -> bool:
    """Whether a configuration names other finetunes than the pair's own."""
    return not all(entry.own for entry in load_amplification_config(config).adapters)


class WeightAmplification(DiffingMethod[WeightAmplificationParams, WeightAmplificationResult]):
    """Weight amplification: the finetune's change of weights counts w times, W_base + w (W_finetuned - W_base), while
    the model answers everyday prompts; its answers stand beside those of the plain finetuned and of the base model,
    drawn with the same random numbers.
    """

    name = "weight_amplification"
    title = "Weight amplification"
    for_agents = (
        "What training made a little more likely becomes common: use it when the plain finetuned model hides its "
        "trait. Without `weights` the largest weight at which texts stay coherent is searched for, above 0 or "
        "below it (perplexity under the base, repetition and length; no language model judges). Content words "
        "over-represented in amplified texts are tested against the base's. Very large weights break any model, "
        "so words of incoherent weights mean nothing. Layers and modules can be chosen, and negative weights "
        "invert the change. Own prompts cost one interaction a sample and weight, and one for the plain finetuned "
        "model. Views: `answers` (all answers by weight and text), `searched` (texts at every strength tried)."
    )
    Params = WeightAmplificationParams
    Result = WeightAmplificationResult
    cost = "long"
    in_overview = True
    views = by_name(answers, searched)
    figures = (coherence_figure("Coherence by weight", "weights", "weight", "weight of the difference"),)

    def run(
        self, pair: LoadedPair, params: WeightAmplificationParams, run: RunWriter, progress: Progress
    ) -> WeightAmplificationResult:
        from diffing_mcp.methods.weight_amplification.measure import amplify

        return amplify(pair, params, run, progress)

    def text_groups(self, record: RunRecord) -> Sequence[TextGroup]:
        """The texts of each weight above 1, those of the plain models, and as controls of weights up to 0 (weights
        between dampen what was taught). None of a mixture with other finetunes: what it writes may be of those.
        """
        if (config := record.manifest.params.get("config")) is not None and _mixes(config):
            return []
        answers = record.rows("answers")
        coherent = {("finetuned", row["weight"]): row["coherent"] for row in record.rows("weights")}
        # Of a configuration its own weights are what amplifies, and 1 leaves them as they are.
        plain = 1 if config is None else 0
        groups: list[TextGroup] = []
        for number, (weight, rows) in enumerate(grouped(answers, "weight").items()):
            if number == 0:
                groups.append(group_of(rows, "finetuned", name="finetuned", role="finetuned"))
                groups.append(group_of(rows, "base", name="base", role="control"))
            role: TextRole = "amplified" if weight > plain else "finetuned" if weight > 0 else "control"
            name = f"weight {weight:g}"
            groups.append(group_at(rows, "amplified", "finetuned", weight, coherent, name=name, role=role))
        return [*groups, *searched_groups(record, coherent)]

    def interactions(self, params: WeightAmplificationParams) -> int:
        return len(params.prompts or ()) * params.samples_per_prompt * (1 + len(params.weights or (1.0,)))

    def operator_only(self, params: WeightAmplificationParams) -> str | None:
        if params.config is not None and _mixes(params.config):
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
        return cost_of_answers(pair, generated)
