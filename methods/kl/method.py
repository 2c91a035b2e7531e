"""The method `kl`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from diffing_mcp.methods.contract import CorpusMethod, Cost, Figure, MethodResult, View
from diffing_mcp.methods.kl.schema import KLParams, KLResult
from diffing_mcp.methods.kl.views import FIGURES, VIEWS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.kl.divergences import KLAccumulator
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus


class KLDivergence(CorpusMethod[KLParams, KLResult]):
    """How far the two models' next-token distributions are apart on a text corpus: KL divergence in both directions and
    Jensen-Shannon divergence, in nats, for every token and text; the texts and tokens where the models differ most,
    each with the tokens whose probability moved most.
    """

    name: ClassVar[str] = "kl"
    title: ClassVar[str] = "KL divergence"
    for_agents: ClassVar[str] = (
        "How far the two models' next-token distributions are apart on a text corpus: KL divergence in both "
        "directions and Jensen-Shannon divergence, in nats, for every token and text; the texts and tokens where "
        "the models differ most, each with the tokens whose probability moved most. It tells how much changed and "
        "where, not what was meant."
    )
    version: ClassVar[int] = 1
    Params: ClassVar[type[BaseModel]] = KLParams
    Result: ClassVar[type[MethodResult]] = KLResult
    cost: ClassVar[Cost] = "minutes"
    in_overview: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = VIEWS
    figures: ClassVar[Sequence[Figure]] = FIGURES

    def accumulator(self, pair: LoadedPair, params: KLParams, corpus: TokenizedCorpus) -> KLAccumulator:
        from diffing_mcp.methods.kl.divergences import KLAccumulator

        return KLAccumulator(pair, corpus, params.examples)

    def summarise(self, accumulator: Any, pair: LoadedPair, params: KLParams, run: RunWriter) -> KLResult:
        from diffing_mcp.methods.kl.summary import summarise

        return summarise(accumulator, pair, run)
