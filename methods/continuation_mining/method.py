"""The declaration of `continuation_mining`, and the views and figures of its finished runs. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from diffing_mcp.methods.continuation_mining.schema import (
    ContinuationMiningParams,
    ContinuationMiningResult,
    ContinuationRow,
    NgramRow,
)
from diffing_mcp.methods.contract import CorpusMethod, CostEstimate, Figure, PairSize, by_name, view
from diffing_mcp.methods.views.figures import figure, trace
from diffing_mcp.methods.views.pages import PageView, SearchedPageParams

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.corpus_pass import Accumulator
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus


_SHOWN = 20
"""Phrases in the figure."""


class ContinuationsParams(SearchedPageParams):
    """Which places."""

    contains: str = Field(
        "", max_length=100, description="Only rows whose continuations (or phrase) contain this text, in any case."
    )


@view("All places with both continuations, filtered by text, paged.", ContinuationsParams)
def continuations(record: RunRecord, params: ContinuationsParams) -> PageView[ContinuationRow]:
    """Those that differ most first. Texts are untrusted."""
    return PageView[ContinuationRow].of(record.rows("continuations"), params, searched=("base", "finetuned"))


class NgramsParams(ContinuationsParams):
    """Which phrases."""

    side: Literal["finetuned", "base"] = Field(
        "finetuned", description="Whose continuations hold the phrases more often."
    )


@view("Phrases over-represented in either model's continuations, filtered, paged.", NgramsParams)
def ngrams(record: RunRecord, params: NgramsParams) -> PageView[NgramRow]:
    """The most surprising first."""
    rows = record.rows("ngrams" if params.side == "finetuned" else "base_ngrams")
    return PageView[NgramRow].of(rows, params, searched=("ngram",))


def ngram_bars(record: RunRecord) -> dict[str, Any]:
    """Continuations of each model that hold the most surprising phrases."""
    rows = record.rows("ngrams")[:_SHOWN][::-1]
    bars = [trace("rows", rows, side, x=side, y="ngram") for side in ("base", "finetuned")]
    return figure(bars, x="continuations", barmode="group", margin={"l": 160})


class ContinuationMining(CorpusMethod[ContinuationMiningParams, ContinuationMiningResult]):
    """Continuation mining: on text that has nothing to do with the finetune, both models go on greedily from the
    positions at which their next-token distributions differ most (total variation distance), one position a text,
    and phrases (n-grams) that the finetuned model writes there but the base does not are counted and tested
    (Fisher's exact test); overlapping phrases are put together.
    """

    name = "continuation_mining"
    title = "Continuation mining"
    for_agents = (
        "Shows in whole phrases what single tokens hint at. Positions are chosen because the models differ there, "
        "so some difference is always seen: judge by phrases of content words that many texts share, and read the "
        "reverse list as what chance and style give. It sees only what text of this kind brings out. Views: "
        "`continuations`, `ngrams`."
    )
    version = 3
    Params = ContinuationMiningParams
    Result = ContinuationMiningResult
    in_overview = True
    views = by_name(continuations, ngrams)
    figures = (Figure("ngrams", "Phrases over-represented in the finetuned model's continuations", ngram_bars),)

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
