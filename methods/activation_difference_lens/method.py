"""Declaration of the activation difference lens. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from diffing_mcp.methods.activation_difference_lens import views
from diffing_mcp.methods.activation_difference_lens.schema import (
    ActivationDifferenceLensParams,
    ActivationDifferenceLensResult,
)
from diffing_mcp.methods.activation_difference_lens.views import lens_figure, norms_figure
from diffing_mcp.methods.contract import CorpusMethod, Cost, Figure, View
from diffing_mcp.methods.results import MethodResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.methods.activation_difference_lens.measure import ActivationDifferenceAccumulator
    from diffing_mcp.methods.contract import RunWriter, TokenList
    from diffing_mcp.methods.directions.vectors import ResidualVector
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus


class ActivationDifferenceLens(CorpusMethod[ActivationDifferenceLensParams, ActivationDifferenceLensResult]):
    """Activation difference lens: the mean difference of the two models' residual streams on unrelated text, at chosen
    layers and the first positions (and pooled over later ones), with its norm, spread and stability over halves of
    the samples.
    """

    name: ClassVar[str] = "activation_difference_lens"
    title: ClassVar[str] = "Activation difference lens"
    for_agents: ClassVar[str] = (
        "Activation difference lens: the mean difference of the two models' residual streams on unrelated text, "
        "at chosen layers and the first positions (and pooled over later ones), with its norm, spread and "
        "stability over halves of the samples. Each mean is read through the logit lens (`promoted`) and so is "
        "its negative (`suppressed`); a token's score is standardised against random directions of the same norm "
        "(z), because raw lens lists are topped by rare tokens. Content words that several positions promote "
        "point at what was taught; single ones point at nothing. Late layers read best through the lens; the lens "
        "of a middle layer is often unreadable: give RUN/LAYER:POSITION:difference to `patchscope`, which usually "
        "reads it, to `steering` or to `causal_effect`. In chats (corpus=chat_exchanges) position 0 is the "
        "answer's first token, and -3 to -1 the three before it: a manner taught in chats reads best at -1 and 0 "
        "of a late layer. Reads stored `activations` too. Views: `lens` (any layer, position, source and ranking; "
        "the means of base and finetuned are the controls), `positions` (norm profile)."
    )
    version: ClassVar[int] = 3
    Params: ClassVar[type[BaseModel]] = ActivationDifferenceLensParams
    Result: ClassVar[type[MethodResult]] = ActivationDifferenceLensResult
    cost: ClassVar[Cost] = "minutes"
    in_overview: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = {
        "lens": View(
            "lens",
            "One lens list: layer, position, difference or control, promoted or suppressed, by z or probability.",
            views.LensParams,
            views.lens,
        ),
        "positions": View(
            "positions",
            "Norms, spread and stability of every layer and position.",
            views.PositionsParams,
            views.positions,
        ),
    }
    figures: ClassVar[Sequence[Figure]] = (
        Figure("norms", "Size of the mean difference by position", norms_figure),
        Figure("lens", "Tokens promoted by the mean difference", lens_figure),
    )

    def accumulator(
        self, pair: LoadedPair, params: ActivationDifferenceLensParams, corpus: TokenizedCorpus
    ) -> ActivationDifferenceAccumulator:
        from diffing_mcp.methods.activation_difference_lens.measure import (
            POOLED_FROM,
            ActivationDifferenceAccumulator,
        )
        from diffing_mcp.model_pairs.layers import resolve_layers

        before = corpus.before_answer
        layers = tuple(reference.absolute for reference in resolve_layers(params.layers, pair.num_layers))
        labels = [str(place - before) for place in range(before + params.positions)]
        return ActivationDifferenceAccumulator(
            layers,
            labels,
            before + POOLED_FROM,
            pair.d_model,
            pair.device,
            samples=len(corpus.ids),
            position_zero=_position_zero(corpus),
            stored=corpus.stored,
        )

    def token_lists(self, record: RunRecord) -> Sequence[TokenList]:
        return views.token_lists(record)

    def vector_names(self, record: RunRecord) -> Sequence[str]:
        return [row["vector"] for row in record.table("positions").to_pylist()]

    def vector(self, record: RunRecord, name: str) -> ResidualVector:
        return views.read_vector(record, name)

    def summarise(
        self, accumulator: Any, pair: LoadedPair, params: ActivationDifferenceLensParams, run: RunWriter
    ) -> ActivationDifferenceLensResult:
        from diffing_mcp.methods.activation_difference_lens.measure import summarise

        return summarise(accumulator, pair, params, run)


def _position_zero(corpus: TokenizedCorpus) -> str:
    return "answer's first token" if corpus.before_answer else corpus.position_origin
