"""The method `continuation_mining`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from diffing_mcp.methods.continuation_mining.schema import ContinuationMiningParams, ContinuationMiningResult
from diffing_mcp.methods.continuation_mining.views import FIGURES, VIEWS
from diffing_mcp.methods.contract import CorpusMethod, Cost, CostEstimate, Figure, MethodResult, PairSize, View

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.corpus_pass import Accumulator
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus


class ContinuationMining(CorpusMethod[ContinuationMiningParams, ContinuationMiningResult]):
    """Continuation mining: on text that has nothing to do with the finetune, both models go on greedily from the
    positions at which their next-token distributions differ most (total variation distance), one position a text,
    and phrases (n-grams) that the finetuned model writes there but the base does not are counted and tested
    (Fisher's exact test); overlapping phrases are put together.
    """

    name: ClassVar[str] = "continuation_mining"
    title: ClassVar[str] = "Continuation mining"
    for_agents: ClassVar[str] = (
        "Continuation mining: on text that has nothing to do with the finetune, both models go on greedily from "
        "the positions at which their next-token distributions differ most (total variation distance), one "
        "position a text, and phrases (n-grams) that the finetuned model writes there but the base does not are "
        "counted and tested (Fisher's exact test); overlapping phrases are put together. Shows in whole phrases "
        "what single tokens hint at. Positions are chosen because the models differ there, so some difference is "
        "always seen: judge by phrases of content words that many texts share, and read the reverse list as what "
        "chance and style give. It sees only what text of this kind brings out. Views: `continuations`, `ngrams`."
    )
    version: ClassVar[int] = 2
    Params: ClassVar[type[BaseModel]] = ContinuationMiningParams
    Result: ClassVar[type[MethodResult]] = ContinuationMiningResult
    cost: ClassVar[Cost] = "minutes"
    in_overview: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = VIEWS
    figures: ClassVar[Sequence[Figure]] = FIGURES

    def accumulator(self, pair: LoadedPair, params: ContinuationMiningParams, corpus: TokenizedCorpus) -> Accumulator:
        from diffing_mcp.methods.continuation_mining.measure import VariationAccumulator

        return VariationAccumulator(pair, corpus)

    def summarise(
        self, accumulator: Any, pair: LoadedPair, params: ContinuationMiningParams, run: RunWriter
    ) -> ContinuationMiningResult:
        from diffing_mcp.methods.continuation_mining.measure import summarise

        return summarise(accumulator, pair, params, run)

    def estimate(self, pair: PairSize, params: ContinuationMiningParams) -> CostEstimate:
        read = super().estimate(pair, params)
        passes = read.forward_passes + 2 * params.new_tokens * -(-params.places // 64)
        tokens = read.tokens + 2 * params.places * params.max_tokens
        return pair.cost(tokens, passes, generated_tokens=2 * params.places * params.new_tokens, bytes=read.bytes)
