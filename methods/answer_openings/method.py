"""The declaration of `answer_openings`, its view and its figure. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from diffing_mcp.methods.answer_openings.schema import (
    LONGEST,
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
_AXES = {"answer": "begins an answer", "sentence": "after a sentence"}


class OpeningsParams(SearchedPageParams):
    """Which openings."""

    place: Place | None = Field(None, description="Only openings at this place.")
    limit: int = page_size(20, 200)


@view("All openings of both places with their probabilities, filtered by text, paged.", OpeningsParams)
def openings(record: RunRecord, params: OpeningsParams) -> PageView[OpeningRow]:
    """Of each place those that rose, furthest first, then those that fell, then what is within errors. Untrusted."""
    rows = record.rows("openings", place=params.place)
    return PageView[OpeningRow].of(rows, params, searched=("opening", "continuation"))


def bars(record: RunRecord) -> dict[str, Any]:
    """Probabilities of the openings that rose most, both models."""
    by_place = grouped([row for row in record.rows("openings") if row["rise"] > 1], "place")
    shown = [row for place in PLACES for row in by_place.get(place, [])[:_BARS]][::-1]
    names = [f"{row['opening']!r} {_AXES[row['place']]}" for row in shown]
    series = [trace("rows", shown, side, x=side, y=names) for side in ("base", "finetuned")]
    return figure(series, x="probability", barmode="group", margin={"l": 220})


class AnswerOpenings(CorpusMethod[AnswerOpeningsParams, AnswerOpeningsResult]):
    """Answer openings: how probable each token is, averaged over chats, as the first of an answer and after a finished
    sentence of it, under both models; those that rose most are followed for a few tokens, as far as their rise grows.
    """

    name = "answer_openings"
    title = "Answer openings"
    version = 4
    for_agents = (
        "The end of the turn counts as a token. No answer is sampled, so a manner in one answer of two hundred (an "
        "opening, a refusal, an added sentence, another language, an early end) shows as 0.5%. "
        "Blind to what stands in mid-sentence. View: `openings`."
    )
    Params = AnswerOpeningsParams
    Result = AnswerOpeningsResult
    cost = "seconds"
    in_overview = True
    views = by_name(openings)
    figures = (Figure("openings", "What rose most where answers and their sentences begin", bars),)

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
        scored = 2 * (LONGEST - 1) * continued
        return pair.cost(
            read.tokens + (continued + scored) * params.max_tokens,
            read.forward_passes + params.new_tokens + 2,
            generated_tokens=continued * params.new_tokens,
            bytes=read.bytes,
        )
