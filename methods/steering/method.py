"""The declaration of `steering`, and the views and figures of its finished runs. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from diffing_mcp.methods.contract import CostEstimate, DiffingMethod, PairSize, TextGroup, TextRole, by_name, view
from diffing_mcp.methods.steering.schema import (
    GRID,
    REFINEMENTS,
    SEARCH_PROMPTS,
    AnswerAndControl,
    SteeringParams,
    SteeringResult,
)
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
    strength: float | None = Field(None, description="Only this strength of the run (0.01 near).")
    side: Literal["base", "finetuned"] | None = Field(None, description="Only this model.")
    within: Literal["steered", "unsteered", "random"] = Field(
        "steered",
        description=(
            "Which of the texts `contains` looks in (besides the prompt); `random` is the control under a random "
            "direction."
        ),
    )


@view("Page through all answers: steered, unsteered, and the control under a random direction.", AnswersParams)
def answers(record: RunRecord, params: AnswersParams) -> TextPageView[AnswerAndControl]:
    rows = near(record.rows("answers", side=params.side), "strength", params.strength)
    return TextPageView[AnswerAndControl].of(
        rows, params, searched=("prompt", params.within), cut=("steered", "unsteered", "random")
    )


class Steering(DiffingMethod[SteeringParams, SteeringResult]):
    """Steering: a direction is added to the residual stream at its layer while a model answers everyday prompts, and
    the answers stand beside unsteered ones drawn with the same random numbers.
    """

    name = "steering"
    title = "Steering"
    papers = ("Minder et al. 2025, arXiv 2510.13900",)
    for_agents = (
        "Without `strengths` the largest strength at which texts stay coherent is searched for, with both signs, "
        "by perplexity under the base model and repetition (no language model judges). Content words over- "
        "represented in steered texts are tested against unsteered texts and texts steered by a random direction "
        "of the same strength. Steering by a mean activation difference amplifies what a finetune taught: compare "
        "a few answers before you conclude. Works on any vector named RUN/NAME, a token, or a contrast of texts; "
        "own prompts cost one interaction a sample and strength, controls included. A direction that cannot steer "
        "(zero, or incoherent at every strength) is reported so. Views: `answers` (all answers and controls by "
        "strength, model and text), `searched` (texts at every strength tried)."
    )
    Params = SteeringParams
    Result = SteeringResult
    cost = "long"
    needs_vector = True
    views = by_name(answers, searched)
    figures = (coherence_figure("Coherence by strength", "strengths", "strength", "strength"),)

    def run(self, pair: LoadedPair, params: SteeringParams, run: RunWriter, progress: Progress) -> SteeringResult:
        from diffing_mcp.methods.steering.measure import steer

        return steer(pair, params, run, progress)

    def text_groups(self, record: RunRecord) -> Sequence[TextGroup]:
        """Steered texts of each model and strength; the unsteered base and random directions are controls (unsteered
        texts are the same at all strengths).
        """
        coherent = {(row["side"], row["strength"]): row["coherent"] for row in record.rows("strengths")}
        groups: list[TextGroup] = []
        for side, of_side in grouped(record.rows("answers"), "side").items():
            plain: TextRole = "finetuned" if side == "finetuned" else "control"
            for number, (strength, rows) in enumerate(grouped(of_side, "strength").items()):
                if number == 0:
                    groups.append(group_of(rows, "unsteered", name=f"{side} unsteered", role=plain))
                role: TextRole = "amplified" if strength > 0 else "control"
                name = f"{side} {strength:+g}"
                groups.append(group_at(rows, "steered", side, strength, coherent, name=name, role=role))
                random = f"{name} random direction"
                groups.append(group_of(rows, "random", name=random, role="control", strength=strength))
        return [*groups, *searched_groups(record, coherent)]

    def interactions(self, params: SteeringParams) -> int:
        strengths = 2 if params.strengths is None else len(params.strengths)
        sides = 2 if params.side == "both" else 1
        return len(params.prompts or ()) * params.samples_per_prompt * strengths * sides

    def key_parts(self, params: SteeringParams, spec: PairSpec) -> dict[str, Any]:
        return {} if params.prompts is not None else {"prompts": list(PROMPTS)}

    def estimate(self, pair: PairSize, params: SteeringParams) -> CostEstimate:
        sides = 2 if params.side == "both" else 1
        searched = 0 if params.strengths is not None else 2 * (len(GRID) + REFINEMENTS) * len(SEARCH_PROMPTS)
        strengths = 2 if params.strengths is None else len(params.strengths)
        answers = len(params.prompts or PROMPTS) * params.samples_per_prompt * (1 + 2 * strengths)
        generated = sides * (searched + answers) * params.max_new_tokens
        return cost_of_answers(pair, generated)
