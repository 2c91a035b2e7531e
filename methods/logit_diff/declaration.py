"""Declaration of logit-difference mining: parameters, result, views and figures. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, Field

from methods.contract import CorpusMethod, CorpusMethodParams, Cost, Figure, MethodResult, View
from methods.logit_diff import figures, views
from methods.logit_diff.evidence import NULL_LOG_ODDS
from methods.logit_diff.rows import Ordering, RisenWord, TokenRow
from methods.words import EvidenceWord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from methods.contract import RunWriter
    from methods.logit_diff.accumulator import LogitDifferenceAccumulator
    from model_pairs.pair import LoadedPair
    from preprocessing.tokenize import TokenizedCorpus


class LogitDifferenceParams(CorpusMethodParams):
    """Parameters of `logit_diff_topk_occurring`, with those of the corpus."""

    top_k: int = Field(
        100, ge=1, le=10_000, description="A token occurs at a position when it is among this many largest (or smallest) logit differences."
    )
    ordering: Ordering = Field(
        "top_k_occurring", description="What the result's lists are sorted by; the `tokens` view gives the other orderings of the same run."
    )
    normalise: bool = Field(
        False,
        description="Merge case, space and punctuation variants of a word; at a position a word occurs once, mean and share are over its variants.",
    )
    list_length: int = Field(12, ge=1, le=50, description="Rows of each list in the result.")


class LogitDifferenceResult(MethodResult):
    """Which next tokens finetuning favoured on this text, judged by expected occurrences."""

    identical: bool = Field(description="Whether every number is exactly the same in both models.")
    words: list[RisenWord] = Field(description="Content words with the firmest rise: the evidence for a topic.")
    strong_words: int = Field(description="Number of content words beyond the null level.")
    needed_strong_words: int = Field(description="As many are needed to stand out.")
    risen: list[TokenRow] = Field(description="Top of the ordering; descriptive: it has a top under any finetune.")
    fallen: list[TokenRow]
    ordering: Ordering
    left_out: int = Field(
        description="Special tokens, and tokens negligible under both models, left out of the lists; the `tokens` view can show them."
    )
    positions: int = Field(description="Positions compared.")
    samples: int
    top_k: int
    position_zero: str = Field(description="What position 0 is.")

    def evidence_words(self) -> list[EvidenceWord]:
        """Content words that rose, for `overview`; a score of 1 is the null level."""
        return [EvidenceWord(word=row.word, score=row.log_odds / NULL_LOG_ODDS) for row in self.words]

    def as_text(self) -> str:
        lines = [self.headline]
        if self.words:
            lines.append("content words, expected per 1,000 positions base -> finetuned (log odds ± error; * beyond the null level):")
            lines += [row.as_text() for row in self.words]
        for name, rows in (("risen", self.risen), ("fallen", self.fallen)):
            if rows:
                lines.append(f"{name} by {self.ordering}: token occurrence% share-positive mean-difference log-odds")
                lines += [
                    f"  {row.token!r} {row.occurrence:.1f}% {row.share_positive:.2f} {row.mean_difference:+.2f} {row.log_odds:+.2f}" for row in rows
                ]
        lines.append(
            f"{self.positions} positions of {self.samples} samples, top_k {self.top_k}; position 0 is the {self.position_zero}; "
            f"{self.left_out} special or never predicted tokens left out"
        )
        return "\n".join(lines)


class LogitDifference(CorpusMethod[LogitDifferenceParams, LogitDifferenceResult]):
    """Diff mining: on text that has nothing to do with the finetune, which next tokens does the finetuned model favour over the base?
    At every position the logit difference (finetuned minus base) is taken over the whole vocabulary; tokens are ordered by how often they are among
    the largest differences, by the share of positions at which they rose, or by their mean difference. Content words whose expected occurrences rose
    beyond what a finetune that taught nothing shows are the evidence for a topic; `words` lists them first. The raw lists (`risen`, `fallen`) have a
    top under any finetune: code fragments and rare tokens there mean nothing by themselves. Views: `tokens` (any ordering, filtered, paged),
    `token` (all numbers of one word)."""

    name: ClassVar[str] = "logit_diff_topk_occurring"
    title: ClassVar[str] = "Logit difference (diff mining)"
    version: ClassVar[int] = 2
    Params: ClassVar[type[BaseModel]] = LogitDifferenceParams
    Result: ClassVar[type[MethodResult]] = LogitDifferenceResult
    cost: ClassVar[Cost] = "minutes"
    in_overview: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = {
        "tokens": View("tokens", "The vocabulary by any ordering and sign, filtered by text, paged.", views.TokensParams, views.tokens),
        "token": View("token", "All numbers of one word: its variants and their merged log odds.", views.TokenParams, views.token),
    }
    figures: ClassVar[Sequence[Figure]] = (
        Figure("scatter", "Mean logit difference against occurrence in the top K", figures.scatter),
        Figure("bars", "Content words whose expected occurrences rose most", figures.bars),
    )

    def accumulator(self, pair: LoadedPair, params: LogitDifferenceParams, corpus: TokenizedCorpus) -> LogitDifferenceAccumulator:
        from methods.logit_diff.accumulator import LogitDifferenceAccumulator
        from methods.words import vocabulary

        merge = vocabulary(pair.tokenizer, pair.vocab_size).word_index if params.normalise else None
        return LogitDifferenceAccumulator(pair.vocab_size, params.top_k, merge, pair.device, len(corpus.ids), corpus.position_origin)

    def summarise(self, accumulator: Any, pair: LoadedPair, params: LogitDifferenceParams, run: RunWriter) -> LogitDifferenceResult:
        from methods.logit_diff.summary import summarise

        return summarise(accumulator, pair, params, run)
