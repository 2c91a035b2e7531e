"""Declaration of patchscope. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel

from diffing_mcp.methods.contract import Cost, CostEstimate, DiffingMethod, Figure, PairSize, View
from diffing_mcp.methods.patchscope import views
from diffing_mcp.methods.patchscope.schema import PatchscopeParams, PatchscopeResult
from diffing_mcp.methods.patchscope.views import agreement_figure
from diffing_mcp.methods.results import MethodResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter, TokenList
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair

_PROMPT_TOKENS = 20


class Patchscope(DiffingMethod[PatchscopeParams, PatchscopeResult]):
    """Patchscope: what a direction of the residual stream says when a model is made to repeat it."""

    name: ClassVar[str] = "patchscope"
    title: ClassVar[str] = "Patchscope"
    for_agents: ClassVar[str] = (
        "Patchscope: what a direction of the residual stream says when a model is made to repeat it. Short "
        "identity prompts (`man -> man`) end in a token whose activation at the direction's layer is replaced by "
        "the direction, at several norms and with both signs; the next-token probabilities are averaged over "
        "prompts. The scale is chosen without a language model: where all prompts agree most on content words, "
        "relative to random directions of the same norm. Works on any vector named RUN/NAME (mean differences, "
        "components, latents), on a token, or on a contrast of texts. Often reads topics where the logit lens "
        "shows fragments. `stands_out` says that the direction is readable, not that finetuning made it so: read "
        "a mean of the base, or another direction of the same layer, as a control. Views: `scale` (the whole list "
        "at one scale and sign)."
    )
    Params: ClassVar[type[BaseModel]] = PatchscopeParams
    Result: ClassVar[type[MethodResult]] = PatchscopeResult
    cost: ClassVar[Cost] = "seconds"
    in_overview: ClassVar[bool] = True
    needs_vector: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = {
        "scale": View(
            "scale",
            "Tokens at one scale, promoted or suppressed, by probability, z or shared lift.",
            views.ScaleParams,
            views.scale,
        )
    }
    figures: ClassVar[Sequence[Figure]] = (
        Figure("agreement", "How readable the direction is by scale", agreement_figure),
    )

    def run(self, pair: LoadedPair, params: PatchscopeParams, run: RunWriter, progress: Progress) -> PatchscopeResult:
        from diffing_mcp.methods.patchscope.measure import read_direction

        return read_direction(pair, params, run, progress)

    def token_lists(self, record: RunRecord) -> Sequence[TokenList]:
        return views.token_lists(record)

    def interactions(self, params: PatchscopeParams) -> int:
        return len(params.prompts or ())

    def estimate(self, pair: PairSize, params: PatchscopeParams) -> CostEstimate:
        prompts = 3 if params.prompts is None else len(params.prompts)
        rows = (2 + params.random_directions) * len(params.scales)
        return pair.cost(
            prompts * (rows + _PROMPT_TOKENS), 2 * prompts * len(params.scales), bytes=40_000 * len(params.scales)
        )
