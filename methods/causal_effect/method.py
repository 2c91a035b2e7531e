"""Declaration of the causal effect. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from diffing_mcp.core.settings import settings
from diffing_mcp.methods.causal_effect import views
from diffing_mcp.methods.causal_effect.schema import CausalEffectParams, CausalEffectResult
from diffing_mcp.methods.causal_effect.views import effects_figure
from diffing_mcp.methods.contract import Cost, CostEstimate, DiffingMethod, Figure, PairSize, View
from diffing_mcp.methods.results import MethodResult
from diffing_mcp.preprocessing.corpora import corpus_identity
from diffing_mcp.preprocessing.text_sources import corpus_part

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import PairSpec


class CausalEffect(DiffingMethod[CausalEffectParams, CausalEffectResult]):
    """Causal effect: whether a direction carries what the finetune changed."""

    name: ClassVar[str] = "causal_effect"
    title: ClassVar[str] = "Causal effect of directions"
    for_agents: ClassVar[str] = (
        "Causal effect: whether a direction carries what the finetune changed. In one model the projection of "
        "every activation on the direction is set to that of the other model on the same text (or to zero), and "
        "the change of the loss is compared with the gap between the models and with two nulls: random Gaussian "
        "directions and differences of random base activations. A direction that matters on text about what was "
        "taught and not on unrelated text belongs to the finetune: run it on both (`texts` takes your own). Small "
        "p-values come easily, because any direction along which the models differ does something; read the share "
        "of the gap and the size first. In chats the loss is that of the answer. Views: `samples` (losses of each "
        "text), `nulls` (loss changes of all null directions)."
    )
    version: ClassVar[int] = 3
    Params: ClassVar[type[BaseModel]] = CausalEffectParams
    Result: ClassVar[type[MethodResult]] = CausalEffectResult
    cost: ClassVar[Cost] = "long"
    needs_vector: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = {
        "samples": View(
            "samples", "Losses of each text with one of the directions changed.", views.SamplesParams, views.samples
        ),
        "nulls": View("nulls", "Loss changes of the null directions, largest first.", views.NullsParams, views.nulls),
    }
    figures: ClassVar[Sequence[Figure]] = (Figure("effects", "Loss changes beside their nulls", effects_figure),)

    def run(
        self, pair: LoadedPair, params: CausalEffectParams, run: RunWriter, progress: Progress
    ) -> CausalEffectResult:
        from diffing_mcp.methods.causal_effect.measure import measure

        return measure(pair, params, run, progress)

    def interactions(self, params: CausalEffectParams) -> int:
        return len(params.texts or ())

    def key_parts(self, params: CausalEffectParams, spec: PairSpec) -> dict[str, Any]:
        return {} if params.texts is not None else {"corpus": corpus_identity(corpus_part(params))}

    def estimate(self, pair: PairSize, params: CausalEffectParams) -> CostEstimate:
        samples = params.max_samples if params.texts is None else len(params.texts)
        tested = 1 if params.subspace else len(params.vectors)
        # Vectors may lie in different layers, each with nulls of its own; how many is known only once they are looked
        # up.
        passes = 2 + tested + 2 * params.random_directions
        batches = -(-samples * params.max_tokens // settings().batch_tokens)
        return pair.cost(samples * params.max_tokens * passes, passes * batches, bytes=16 * samples * passes)
