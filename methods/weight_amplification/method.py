"""The declaration of `weight_amplification`, and the views and figures of its finished runs. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from diffing_mcp.methods.contract import Cost, CostEstimate, DiffingMethod, Figure, PairSize, TextGroup, View
from diffing_mcp.methods.results import MethodResult
from diffing_mcp.methods.texts.amplified import (
    SEARCHED_VIEW,
    coherence_figure,
    cost_of_answers,
    searched_groups,
    series_of,
)
from diffing_mcp.methods.texts.pages import TextPageParams, TextPageView, near, page_of_texts
from diffing_mcp.methods.texts.prompts import PROMPTS
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
    from collections.abc import Mapping, Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import PairSpec


class AnswersParams(TextPageParams):
    """Which answers."""

    limit: int = Field(5, ge=1, le=100)
    weight: float | None = Field(None, description="Only this weight of the run (0.01 near).")
    within: Literal["amplified", "finetuned", "base"] = Field(
        "amplified", description="Which of the texts `contains` looks in (besides the prompt)."
    )


class AnswersView(TextPageView):
    """A page of answers."""

    rows: list[AmplifiedAnswer]


def answers(record: RunRecord, params: AnswersParams) -> AnswersView:
    """A page of answers: amplified beside finetuned and base."""
    rows = near(record.table("answers").to_pylist(), "weight", params.weight)
    page = page_of_texts(rows, params, searched=("prompt", params.within), cut=("amplified", "finetuned", "base"))
    return AnswersView(
        rows=[AmplifiedAnswer(**row) for row in page.rows], total=page.total, next_offset=page.next_offset
    )


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
            AnswersParams,
            answers,
        ),
        "searched": SEARCHED_VIEW,
    }
    figures: ClassVar[Sequence[Figure]] = (
        Figure(
            "coherence",
            "Coherence by weight",
            lambda record: coherence_figure(record, "weights", "weight", "weight of the difference"),
        ),
    )

    def run(
        self, pair: LoadedPair, params: WeightAmplificationParams, run: RunWriter, progress: Progress
    ) -> WeightAmplificationResult:
        from diffing_mcp.methods.weight_amplification.measure import amplify

        return amplify(pair, params, run, progress)

    def text_groups(self, record: RunRecord) -> Sequence[TextGroup]:
        return text_groups(record)

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
        return cost_of_answers(pair, generated)
