"""The declaration of `steering`, and the views and figures of its finished runs. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from diffing_mcp.methods.contract import Cost, CostEstimate, DiffingMethod, Figure, PairSize, TextGroup, TextRole, View
from diffing_mcp.methods.results import MethodResult
from diffing_mcp.methods.steering.schema import (
    GRID,
    REFINEMENTS,
    SEARCH_PROMPTS,
    AnswerAndControl,
    SteeringParams,
    SteeringResult,
)
from diffing_mcp.methods.texts.amplified import (
    SEARCHED_VIEW,
    coherence_figure,
    cost_of_answers,
    searched_groups,
    series_of,
)
from diffing_mcp.methods.texts.pages import TextPageParams, TextPageView, near, page_of_texts
from diffing_mcp.methods.texts.prompts import PROMPTS

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
    strength: float | None = Field(None, description="Only this strength of the run (0.01 near).")
    side: Literal["base", "finetuned"] | None = Field(None, description="Only this model.")
    within: Literal["steered", "unsteered", "random"] = Field(
        "steered",
        description=(
            "Which of the texts `contains` looks in (besides the prompt); `random` is the control under a random "
            "direction."
        ),
    )


class AnswersView(TextPageView):
    """A page of answers."""

    rows: list[AnswerAndControl]


def answers(record: RunRecord, params: AnswersParams) -> AnswersView:
    """A page of answers: steered, unsteered, and as a control steered by a random direction."""
    rows = [
        row
        for row in near(record.table("answers").to_pylist(), "strength", params.strength)
        if params.side in (None, row["side"])
    ]
    page = page_of_texts(rows, params, searched=("prompt", params.within), cut=("steered", "unsteered", "random"))
    return AnswersView(
        rows=[AnswerAndControl(**row) for row in page.rows], total=page.total, next_offset=page.next_offset
    )


def text_groups(record: RunRecord) -> list[TextGroup]:
    """Steered texts of each model and strength; the unsteered base and random directions are controls (unsteered texts
    are the same at all strengths).
    """
    table = record.table("answers").to_pylist()
    coherent = {(row["side"], row["strength"]): row["coherent"] for row in record.table("strengths").to_pylist()}
    groups: list[TextGroup] = []
    for side in dict.fromkeys(row["side"] for row in table):
        plain: TextRole = "finetuned" if side == "finetuned" else "control"
        for number, strength in enumerate(dict.fromkeys(row["strength"] for row in table if row["side"] == side)):
            rows = [row for row in table if row["side"] == side and row["strength"] == strength]
            prompts = [row["prompt"] for row in rows]
            steered, unsteered, chance = ([row[name] for row in rows] for name in ("steered", "unsteered", "random"))
            if number == 0:
                groups.append(TextGroup(name=f"{side} unsteered", role=plain, prompts=prompts, texts=unsteered))
            groups.append(
                TextGroup(
                    name=f"{side} {strength:+g}",
                    role="amplified" if strength > 0 else "control",
                    strength=strength,
                    series=series_of(side, strength),
                    coherent=coherent.get((side, strength)),
                    prompts=prompts,
                    texts=steered,
                )
            )
            groups.append(
                TextGroup(
                    name=f"{side} {strength:+g} random direction",
                    role="control",
                    strength=strength,
                    prompts=prompts,
                    texts=chance,
                )
            )
    return [*groups, *searched_groups(record, coherent)]


class Steering(DiffingMethod[SteeringParams, SteeringResult]):
    """Steering: a direction is added to the residual stream at its layer while a model answers everyday prompts, and
    the answers stand beside unsteered ones drawn with the same random numbers.
    """

    name: ClassVar[str] = "steering"
    title: ClassVar[str] = "Steering"
    for_agents: ClassVar[str] = (
        "Steering: a direction is added to the residual stream at its layer while a model answers everyday "
        "prompts, and the answers stand beside unsteered ones drawn with the same random numbers. Without "
        "`strengths` the largest strength at which texts stay coherent is searched for, with both signs, by "
        "perplexity under the base model and repetition (no language model judges). Content words over- "
        "represented in steered texts are tested against unsteered texts and texts steered by a random direction "
        "of the same strength. Steering by a mean activation difference amplifies what a finetune taught: compare "
        "a few answers before you conclude. Works on any vector named RUN/NAME, a token, or a contrast of texts; "
        "own prompts cost one interaction a sample and strength, controls included. A direction that cannot steer "
        "(zero, or incoherent at every strength) is reported so. Views: `answers` (all answers and controls by "
        "strength, model and text), `searched` (texts at every strength tried)."
    )
    Params: ClassVar[type[BaseModel]] = SteeringParams
    Result: ClassVar[type[MethodResult]] = SteeringResult
    cost: ClassVar[Cost] = "long"
    needs_vector: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = {
        "answers": View(
            "answers",
            "Page through all answers: steered, unsteered, and the control under a random direction.",
            AnswersParams,
            answers,
        ),
        "searched": SEARCHED_VIEW,
    }
    figures: ClassVar[Sequence[Figure]] = (
        Figure(
            "coherence",
            "Coherence by strength",
            lambda record: coherence_figure(record, "strengths", "strength", "strength"),
        ),
    )

    def run(self, pair: LoadedPair, params: SteeringParams, run: RunWriter, progress: Progress) -> SteeringResult:
        from diffing_mcp.methods.steering.measure import steer

        return steer(pair, params, run, progress)

    def text_groups(self, record: RunRecord) -> Sequence[TextGroup]:
        return text_groups(record)

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
