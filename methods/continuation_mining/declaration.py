"""Declaration of continuation mining: parameters, result, views and figures. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from diffing_mcp.methods.continuation_mining import figures, views
from diffing_mcp.methods.continuation_mining.rows import ContinuationRow, NgramRow, PhraseGroup
from diffing_mcp.methods.contract import (
    CorpusMethod,
    CorpusMethodParams,
    Cost,
    CostEstimate,
    Figure,
    MethodResult,
    PairSize,
    View,
)
from diffing_mcp.methods.texts.words import EvidenceWord, is_content_word

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.corpus_pass import Accumulator
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus


class ContinuationMiningParams(CorpusMethodParams):
    """Parameters of `continuation_mining`, with those of the corpus."""

    places: int = Field(
        100, ge=2, le=5000, description="Positions continued: those where the next-token distributions differ most."
    )
    places_per_text: int = Field(1, ge=1, le=50, description="Positions of one text at most.")
    earliest: int = Field(
        3, ge=0, le=1000, description="Positions before this one are left out: too little text to go on from."
    )
    new_tokens: int = Field(10, ge=1, le=200, description="Tokens of each greedy continuation.")
    longest_ngram: int = Field(3, ge=1, le=6, description="Words of an n-gram at most.")
    list_length: int = Field(12, ge=1, le=50, description="N-grams in the result (and half as many continuations).")


class ContinuationMiningResult(MethodResult):
    """What the finetuned model says next where the two models differ most, against the base model at the same
    positions.
    """

    identical: bool = Field(description="Whether every number is exactly the same in both models.")
    continuations_are_untrusted: Literal[True] = True
    groups: list[PhraseGroup] = Field(
        description="Phrases over-represented in the finetuned model's continuations, overlapping ones together."
    )
    ngrams: list[NgramRow] = Field(
        description="The phrases one by one: over-represented in the finetuned model's continuations."
    )
    base_ngrams: list[NgramRow] = Field(description="The reverse.")
    strong_ngrams: int
    rows: list[ContinuationRow] = Field(description="Where the models differ most.")
    places: int = Field(description="Positions continued by both models.")
    positions: int = Field(description="Positions read.")
    mean_variation: float = Field(description="Mean total variation distance over all positions read.")

    def evidence_words(self) -> list[EvidenceWord]:
        """Content words of strong n-grams; a score of 1 is the null level."""
        from diffing_mcp.methods.continuation_mining.ngrams import STRONG_NEG_LOG10_P

        best: dict[str, float] = {}
        for row in self.ngrams:
            for word in row.ngram.split():
                if is_content_word(word):
                    best[word] = max(best.get(word, 0.0), row.surprise / STRONG_NEG_LOG10_P)
        return [EvidenceWord(word=word, score=score) for word, score in sorted(best.items(), key=lambda item: -item[1])]

    def as_text(self) -> str:
        lines = [self.headline]
        if self.groups:
            lines.append(
                "phrases more often of the finetuned model (continuations that hold them, finetuned : base), with some "
                "of these continuations:"
            )
            lines += [group.as_text() for group in self.groups]
        if self.base_ngrams:
            listed = ", ".join(row.as_text() for row in self.base_ngrams)
            lines.append(f"phrases more often of the base model (finetuned : base): {listed}")
        lines.append("places: total variation, text before, untrusted continuations between ⟦ ⟧:")
        lines += [row.as_text() for row in self.rows]
        lines.append(
            f"{self.places} places of {self.positions} positions; mean total variation of all positions "
            f"{self.mean_variation:.4f}"
        )
        return "\n".join(lines)


class ContinuationMining(CorpusMethod[ContinuationMiningParams, ContinuationMiningResult]):
    """Continuation mining: on text that has nothing to do with the finetune, both models go on greedily from the
    positions at which their next-token distributions differ most (total variation distance), one position a text, and
    phrases (n-grams) that the finetuned model writes there but the base does not are counted and tested (Fisher's exact
    test); overlapping phrases are put together. Shows in whole phrases what single tokens hint at. Positions are chosen
    because the models differ there, so some difference is always seen: judge by phrases of content words that many
    texts share, and read the reverse list as what chance and style give. It sees only what text of this kind brings
    out. Views: `continuations`, `ngrams`."""

    name: ClassVar[str] = "continuation_mining"
    title: ClassVar[str] = "Continuation mining"
    version: ClassVar[int] = 2
    Params: ClassVar[type[BaseModel]] = ContinuationMiningParams
    Result: ClassVar[type[MethodResult]] = ContinuationMiningResult
    cost: ClassVar[Cost] = "minutes"
    in_overview: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = {
        "continuations": View(
            "continuations",
            "All places with both continuations, filtered by text, paged.",
            views.PageParams,
            views.continuations,
        ),
        "ngrams": View(
            "ngrams",
            "Phrases over-represented in either model's continuations, filtered, paged.",
            views.NgramsParams,
            views.ngrams,
        ),
    }
    figures: ClassVar[Sequence[Figure]] = (
        Figure("ngrams", "Phrases over-represented in the finetuned model's continuations", figures.ngrams),
    )

    def accumulator(self, pair: LoadedPair, params: ContinuationMiningParams, corpus: TokenizedCorpus) -> Accumulator:
        from diffing_mcp.methods.continuation_mining.accumulator import VariationAccumulator

        return VariationAccumulator(pair, corpus)

    def summarise(
        self, accumulator: Any, pair: LoadedPair, params: ContinuationMiningParams, run: RunWriter
    ) -> ContinuationMiningResult:
        from diffing_mcp.methods.continuation_mining.summary import summarise

        return summarise(accumulator, pair, params, run)

    def estimate(self, pair: PairSize, params: ContinuationMiningParams) -> CostEstimate:
        read = super().estimate(pair, params)
        passes = read.forward_passes + 2 * params.new_tokens * -(-params.places // 64)
        tokens = read.tokens + 2 * params.places * params.max_tokens
        return pair.cost(tokens, passes, generated_tokens=2 * params.places * params.new_tokens, bytes=read.bytes)
