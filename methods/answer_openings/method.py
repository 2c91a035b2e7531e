"""The declaration of `answer_openings`, its view and its figure. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from diffing_mcp.methods.answer_openings.schema import (
    PLACES,
    AnswerOpeningsParams,
    AnswerOpeningsResult,
    OpeningRow,
    Place,
)
from diffing_mcp.methods.contract import CorpusMethod, CostEstimate, Figure, PairSize, by_name, view
from diffing_mcp.methods.views.figures import figure, trace
from diffing_mcp.methods.views.pages import PageView, SearchedPageParams, page_size
from diffing_mcp.methods.views.rows import grouped

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.corpus_pass import Accumulator
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus

_BARS = 12
_AXES = {"answer": "an answer's first token", "sentence": "after a sentence"}


class OpeningsParams(SearchedPageParams):
    """Which tokens."""

    place: Place | None = Field(None, description="Only tokens at this place.")
    limit: int = page_size(20, 200)


@view("All tokens of both places, filtered by text, paged.", OpeningsParams)
def openings(record: RunRecord, params: OpeningsParams) -> PageView[OpeningRow]:
    """Those that rose, furthest first, then those that fell."""
    return PageView[OpeningRow].of(record.rows("openings", place=params.place), params, searched=("token",))


def bars(record: RunRecord) -> dict[str, Any]:
    """Mean probabilities of the tokens that rose most, both models."""
    by_place = grouped([row for row in record.rows("openings") if row["rise"] > 1], "place")
    shown = [row for place in PLACES for row in by_place.get(place, [])[:_BARS]][::-1]
    names = [f"{row['token']!r} {_AXES[row['place']]}" for row in shown]
    series = [trace("rows", shown, side, x=side, y=names) for side in ("base", "finetuned")]
    return figure(series, x="mean probability", barmode="group", margin={"l": 220})


class AnswerOpenings(CorpusMethod[AnswerOpeningsParams, AnswerOpeningsResult]):
    """Answer openings: how probable each token is, averaged over chats, as the first of an answer and after a finished
    sentence of it, under both models, with the finetuned model's continuations of those that rose most.
    """

    name = "answer_openings"
    title = "Answer openings"
    for_agents = (
        "The end of the turn counts as a token. No answer is sampled, so a manner that shows in one answer of fifty "
        "(an opening, a refusal, an added sentence, another language, an early end) shows as a probability of 0.02. "
        "Blind to what stands in mid-sentence. View: `openings`."
    )
    Params = AnswerOpeningsParams
    Result = AnswerOpeningsResult
    cost = "seconds"
    in_overview = True
    views = by_name(openings)
    figures = (Figure("openings", "Tokens that rose most where answers and their sentences begin", bars),)

    def accumulator(self, pair: LoadedPair, params: AnswerOpeningsParams, corpus: TokenizedCorpus) -> Accumulator:
        from diffing_mcp.methods.answer_openings.measure import OpeningsAccumulator

        return OpeningsAccumulator(pair, corpus)

    def summarise(
        self, accumulator: Any, pair: LoadedPair, params: AnswerOpeningsParams, run: RunWriter
    ) -> AnswerOpeningsResult:
        from diffing_mcp.methods.answer_openings.measure import summarise

        return summarise(accumulator, pair, params, run)

    def estimate(self, pair: PairSize, params: AnswerOpeningsParams) -> CostEstimate:
        read = super().estimate(pair, params)
        continued = len(PLACES) * params.continued
        return pair.cost(
            read.tokens + continued * params.max_tokens,
            read.forward_passes + params.new_tokens,
            generated_tokens=continued * params.new_tokens,
            bytes=read.bytes,
        )
