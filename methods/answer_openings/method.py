"""The declaration of `answer_openings`, its view and its figure. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.methods.answer_openings.schema import (
    PLACES,
    AnswerOpeningsParams,
    AnswerOpeningsResult,
    OpeningRow,
    Place,
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

_BARS = 12
_AXES = {"answer": "an answer's first token", "sentence": "after a sentence"}


class OpeningsParams(BaseModel):
    """A page of tokens."""

    model_config = ConfigDict(extra="forbid")

    place: Place | None = Field(None, description="Only tokens at this place.")
    contains: str = Field("", max_length=100, description="Only tokens that contain this text, in any case.")
    offset: int = Field(0, ge=0)
    limit: int = Field(20, ge=1, le=200)


class OpeningsView(BaseModel):
    """A page of tokens of each place: those that rose, furthest first, then those that fell."""

    rows: list[OpeningRow]
    total: int
    next_offset: int | None


def openings(record: RunRecord, params: OpeningsParams) -> OpeningsView:
    """Tokens with their mean probabilities."""
    wanted = params.contains.casefold()
    rows = [
        row
        for row in record.table("openings").to_pylist()
        if params.place in (None, row["place"]) and wanted in row["token"].casefold()
    ]
    page, next_offset = page_of(rows, params.offset, params.limit)
    return OpeningsView(rows=[OpeningRow(**row) for row in page], total=len(rows), next_offset=next_offset)


def bars(record: RunRecord) -> dict[str, Any]:
    """Mean probabilities of the tokens that rose most, both models."""
    rows = [row for row in record.table("openings").to_pylist() if row["rise"] > 1]
    shown = [row for place in PLACES for row in [row for row in rows if row["place"] == place][:_BARS]][::-1]
    names = [f"{row['token']!r} {_AXES[row['place']]}" for row in shown]
    series = [
        {"type": "bar", "orientation": "h", "name": side, "y": names, "x": [row[side] for row in shown]}
        for side in ("base", "finetuned")
    ]
    return {
        "data": series,
        "layout": {"barmode": "group", "xaxis": {"title": {"text": "mean probability"}}, "margin": {"l": 220}},
    }


class AnswerOpenings(CorpusMethod[AnswerOpeningsParams, AnswerOpeningsResult]):
    """Answer openings: how probable each token is, averaged over chats, as the first of an answer and after a finished
    sentence of it, under both models, with the finetuned model's continuations of those that rose most.
    """

    name: ClassVar[str] = "answer_openings"
    title: ClassVar[str] = "Answer openings"
    for_agents: ClassVar[str] = (
        "Answer openings: next-token probabilities of both models, averaged over chats, at the first token of an "
        "answer and after each finished sentence of it (the end of the turn included), and how the finetuned model "
        "goes on from the tokens that rose most. No answer is sampled, so a manner that shows in one answer of fifty "
        "(an opening, a refusal, an added sentence, another language, an early end) shows as a probability of 0.02. "
        "Blind to what stands in mid-sentence. View: `openings`."
    )
    Params: ClassVar[type[BaseModel]] = AnswerOpeningsParams
    Result: ClassVar[type[MethodResult]] = AnswerOpeningsResult
    cost: ClassVar[Cost] = "seconds"
    in_overview: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = {
        "openings": View("openings", "All tokens of both places, filtered by text, paged.", OpeningsParams, openings)
    }
    figures: ClassVar[Sequence[Figure]] = (
        Figure("openings", "Tokens that rose most where answers and their sentences begin", bars),
    )

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
