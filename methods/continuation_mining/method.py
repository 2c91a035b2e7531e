"""The declaration of `continuation_mining`, and the views and figures of its finished runs. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.methods.continuation_mining.schema import (
    ContinuationMiningParams,
    ContinuationMiningResult,
    ContinuationRow,
    NgramRow,
)
from diffing_mcp.methods.contract import CorpusMethod, Cost, CostEstimate, Figure, MethodResult, PairSize, View
from diffing_mcp.methods.texts.pages import page_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.corpus_pass import Accumulator
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus


_SHOWN = 20
"""Phrases in the figure."""


class PageParams(BaseModel):
    """A page of rows."""

    model_config = ConfigDict(extra="forbid")

    offset: int = Field(0, ge=0)
    limit: int = Field(10, ge=1, le=100)
    contains: str = Field(
        "", max_length=100, description="Only rows whose continuations (or phrase) contain this text, in any case."
    )


class NgramsParams(PageParams):
    """A page of phrases."""

    side: Literal["finetuned", "base"] = Field(
        "finetuned", description="Whose continuations hold the phrases more often."
    )


class ContinuationsView(BaseModel):
    """A page of places, those that differ most first. Texts are untrusted."""

    rows: list[ContinuationRow]
    total: int
    next_offset: int | None


class NgramsView(BaseModel):
    """A page of phrases, most surprising first."""

    rows: list[NgramRow]
    total: int
    next_offset: int | None


def continuations(record: RunRecord, params: PageParams) -> ContinuationsView:
    """Places with both continuations."""
    wanted = params.contains.casefold()
    rows = [
        row
        for row in record.table("continuations").to_pylist()
        if wanted in f"{row['base']}\n{row['finetuned']}".casefold()
    ]
    page, next_offset = page_of(rows, params.offset, params.limit)
    return ContinuationsView(rows=[ContinuationRow(**row) for row in page], total=len(rows), next_offset=next_offset)


def ngrams(record: RunRecord, params: NgramsParams) -> NgramsView:
    """Phrases over-represented in one side's continuations."""
    wanted = params.contains.casefold()
    table = record.table("ngrams" if params.side == "finetuned" else "base_ngrams")
    rows = [row for row in table.to_pylist() if wanted in row["ngram"]]
    page, next_offset = page_of(rows, params.offset, params.limit)
    return NgramsView(rows=[NgramRow(**row) for row in page], total=len(rows), next_offset=next_offset)


def ngram_bars(record: RunRecord) -> dict[str, Any]:
    """Continuations of each model that hold the most surprising phrases."""
    rows = record.table("ngrams").to_pylist()[:_SHOWN][::-1]
    series = [
        {
            "type": "bar",
            "orientation": "h",
            "name": side,
            "y": [row["ngram"] for row in rows],
            "x": [row[side] for row in rows],
        }
        for side in ("base", "finetuned")
    ]
    return {
        "data": series,
        "layout": {"barmode": "group", "xaxis": {"title": {"text": "continuations"}}, "margin": {"l": 160}},
    }


VIEWS = {
    "continuations": View(
        "continuations", "All places with both continuations, filtered by text, paged.", PageParams, continuations
    ),
    "ngrams": View(
        "ngrams", "Phrases over-represented in either model's continuations, filtered, paged.", NgramsParams, ngrams
    ),
}
FIGURES = (Figure("ngrams", "Phrases over-represented in the finetuned model's continuations", ngram_bars),)


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
