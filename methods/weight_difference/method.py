"""Declaration of the weight difference. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel

from diffing_mcp.methods.contract import Cost, CostEstimate, DiffingMethod, Figure, PairSize, View
from diffing_mcp.methods.results import MethodResult
from diffing_mcp.methods.weight_difference import views
from diffing_mcp.methods.weight_difference.schema import WeightDifferenceParams, WeightDifferenceResult
from diffing_mcp.methods.weight_difference.views import norms_figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.directions.vectors import ResidualVector
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair


class WeightDifference(DiffingMethod[WeightDifferenceParams, WeightDifferenceResult]):
    """Weight difference: what the finetune changed in the weights themselves, without any text."""

    name: ClassVar[str] = "weight_difference"
    title: ClassVar[str] = "Weight difference"
    for_agents: ClassVar[str] = (
        "Weight difference: what the finetune changed in the weights themselves, without any text. For every "
        "matrix: norm of the change (also relative to the base), effective rank (participation ratio of the "
        "singular values) and largest singular values; LoRA adapters are decomposed exactly from their factors. "
        "The largest singular directions are read in words: what a matrix writes to the residual stream through "
        "the logit lens (both signs), what it reads against the input embedding. It shows where training acted, "
        "and a topic when one direction promotes several content words far beyond random directions. Sizes alone "
        "are no finding: any training changes weights. Directions are vectors RUN/LAYER:MODULE:N for `steering`, "
        "`patchscope` and `causal_effect`, which often read what the lens cannot. Views: `modules` (every "
        "parameter, sorted), `directions` (token lists of one module's directions)."
    )
    Params: ClassVar[type[BaseModel]] = WeightDifferenceParams
    Result: ClassVar[type[MethodResult]] = WeightDifferenceResult
    cost: ClassVar[Cost] = "minutes"
    in_overview: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = {
        "modules": View(
            "modules",
            "Norm, relative norm, effective rank and singular values of every parameter.",
            views.ModulesParams,
            views.modules,
        ),
        "directions": View(
            "directions",
            "What the singular directions of a module write or read, in tokens.",
            views.DirectionsParams,
            views.directions,
        ),
    }
    figures: ClassVar[Sequence[Figure]] = (Figure("norms", "Change of the weights by layer and module", norms_figure),)

    def run(
        self, pair: LoadedPair, params: WeightDifferenceParams, run: RunWriter, progress: Progress
    ) -> WeightDifferenceResult:
        from diffing_mcp.methods.weight_difference.measure import measure

        return measure(pair, params, run, progress)

    def vector_names(self, record: RunRecord) -> Sequence[str]:
        return views.vector_names(record)

    def vector(self, record: RunRecord, name: str) -> ResidualVector:
        return views.read_vector(record, name)

    def estimate(self, pair: PairSize, params: WeightDifferenceParams) -> CostEstimate:
        layers = (pair.num_layers or 32) if params.layers is None else len(params.layers)
        directions = 9 * layers * params.directions
        rows = params.random_directions + 2 * directions  # each costs the unembedding, about a token
        width = pair.d_model or 2048
        return pair.cost(0, 0, other_work=rows, bytes=directions * (4 * width + 2000))
