"""Declaration of PCA. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from diffing_mcp.methods.contract import Cost, CostEstimate, DiffingMethod, Figure, PairSize, View
from diffing_mcp.methods.examples.views import EXAMPLES_VIEW
from diffing_mcp.methods.pca import views
from diffing_mcp.methods.pca.schema import PCAParams, PCAResult
from diffing_mcp.methods.pca.views import variance_figure
from diffing_mcp.methods.results import MethodResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.directions.vectors import ResidualVector
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import PairSpec


class PCA(DiffingMethod[PCAParams, PCAResult]):
    """PCA of the two models' activation differences (or of either model): the directions along which they vary most,
    layer by layer, with the variance that each explains beside what shuffled pairing gives, its stability over
    halves of the documents, its logit lens on both ends, and the tokens that lie furthest out.
    """

    name: ClassVar[str] = "pca"
    title: ClassVar[str] = "PCA of activation differences"
    for_agents: ClassVar[str] = (
        "PCA of the two models' activation differences (or of either model): the directions along which they vary "
        "most, layer by layer, with the variance that each explains beside what shuffled pairing gives, its "
        "stability over halves of the documents, its logit lens on both ends, and the tokens that lie furthest "
        "out. The mean difference is removed first (activation_difference_lens reads it), and attention sinks are "
        "left out. A component that comes up only on certain tokens shows a change that depends on the input, "
        "which a mean hides. Content words count only beyond those of the base model's own components. Views: "
        "`components`, `component` (whole lens lists), `examples`."
    )
    version: ClassVar[int] = 4
    Params: ClassVar[type[BaseModel]] = PCAParams
    Result: ClassVar[type[MethodResult]] = PCAResult
    cost: ClassVar[Cost] = "minutes"
    views: ClassVar[Mapping[str, View]] = {
        "components": View(
            "components", "Variance, null and stability of all components.", views.ComponentsParams, views.components
        ),
        "component": View(
            "component",
            "One component: whole lens lists and examples of both ends.",
            views.ComponentParams,
            views.component,
        ),
        "examples": EXAMPLES_VIEW,
    }
    figures: ClassVar[Sequence[Figure]] = (Figure("variance", "Variance explained, against its null", variance_figure),)

    def run(self, pair: LoadedPair, params: PCAParams, run: RunWriter, progress: Progress) -> PCAResult:
        from diffing_mcp.methods.pca.measure import analyse

        return analyse(pair, params, run, progress)

    def key_parts(self, params: PCAParams, spec: PairSpec) -> dict[str, Any]:
        from diffing_mcp.preprocessing.text_sources import source_identity

        return source_identity(params)

    def vector_names(self, record: RunRecord) -> Sequence[str]:
        return [row["vector"] for row in record.table("components").to_pylist()]

    def vector(self, record: RunRecord, name: str) -> ResidualVector:
        return views.read_vector(record, name)

    def estimate(self, pair: PairSize, params: PCAParams) -> CostEstimate:
        from diffing_mcp.core.settings import settings

        tokens = params.max_samples * params.max_tokens if not params.collections else 0
        stored = len(params.layers) * params.components * (4 * (pair.d_model or 4096) + 20_000)
        return pair.cost(2 * tokens, 2 * -(-tokens // settings().batch_tokens), bytes=stored)
