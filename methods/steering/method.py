"""Declaration of steering. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from diffing_mcp.methods.contract import Cost, CostEstimate, DiffingMethod, Figure, PairSize, View
from diffing_mcp.methods.results import MethodResult
from diffing_mcp.methods.steering import views
from diffing_mcp.methods.steering.schema import GRID, REFINEMENTS, SEARCH_PROMPTS, SteeringParams, SteeringResult
from diffing_mcp.methods.steering.views import coherence_figure
from diffing_mcp.methods.texts.pages import SearchedParams, searched
from diffing_mcp.methods.texts.prompts import PROMPTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter, TextGroup
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import PairSpec


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
            views.AnswersParams,
            views.answers,
        ),
        "searched": View(
            "searched", "Page through the texts at every strength that the search tried.", SearchedParams, searched
        ),
    }
    figures: ClassVar[Sequence[Figure]] = (Figure("coherence", "Coherence by strength", coherence_figure),)

    def run(self, pair: LoadedPair, params: SteeringParams, run: RunWriter, progress: Progress) -> SteeringResult:
        from diffing_mcp.methods.steering.measure import steer

        return steer(pair, params, run, progress)

    def text_groups(self, record: RunRecord) -> Sequence[TextGroup]:
        return views.text_groups(record)

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
        # Every token is generated once and read once by the base.
        return pair.cost(generated, -(-generated // 32), generated_tokens=generated, bytes=20 * generated)
