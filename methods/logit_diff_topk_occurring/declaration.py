"""Declaration of logit-difference mining: parameters, result, views and figures. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, Field, model_validator

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
from diffing_mcp.methods.logit_diff_topk_occurring import figures, views
from diffing_mcp.methods.logit_diff_topk_occurring.evidence import NULL_LOG_ODDS
from diffing_mcp.methods.logit_diff_topk_occurring.rows import (
    Extraction,
    Factorisation,
    NewTokenRow,
    Ordering,
    PositionRow,
    RisenWord,
    TokenRow,
    TopicEntries,
    TopicRow,
)
from diffing_mcp.methods.texts.words import EvidenceWord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.methods.contract import RunWriter, TokenList
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.corpus_pass import Accumulator
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus


MOST_KEPT = 20_000_000
"""Largest number of differences kept for topics."""


class LogitDifferenceParams(CorpusMethodParams):
    """Parameters of `logit_diff_topk_occurring`, with those of the corpus."""

    top_k: int = Field(
        100,
        ge=1,
        le=10_000,
        description="A token occurs at a position when it is among this many largest (or smallest) logit differences.",
    )
    ordering: Ordering = Field(
        "top_k_occurring",
        description=(
            "What the result's lists are sorted by; the `tokens` view gives the other orderings of the same run."
        ),
    )
    normalise: bool = Field(
        False,
        description=(
            "Merge case, space and punctuation variants of a word; at a position a word occurs once, mean and share "
            "are over its variants."
        ),
    )
    list_length: int = Field(12, ge=1, le=50, description="Rows of each list in the result.")
    extraction: Extraction = Field(
        "logits",
        description=(
            "Where logits come from: the models' output, `logit_lens` (final norm and unembedding on the residual "
            "stream of extraction_layer) or `patchscope` (that state put into a prompt that repeats words; costs a "
            "token a position and side)."
        ),
    )
    extraction_layer: int | float = Field(
        0.75,
        description="Relative depth in [0, 1] (a float) or absolute layer (an integer) of the other two extractions.",
    )
    patchscope_positions: int = Field(
        512, ge=1, le=100_000, description="Positions, drawn at random by seed, that `patchscope` reads."
    )
    topic_entries: TopicEntries = Field(
        "magnitude",
        description=(
            "Topics factorise positive differences (`magnitude`) or ones (`occurrence`) of each position's top_k; "
            "`none`: no topics."
        ),
    )
    topics: int = Field(
        0,
        ge=0,
        le=20,
        description=(
            "Number of topics; 0: the largest number up to most_topics that is stable over halves of the texts."
        ),
    )
    most_topics: int = Field(4, ge=1, le=12, description="Largest number tried when topics is 0.")
    factorisation: Factorisation = Field(
        "frobenius", description="Loss of the factorisation; `orthogonal` punishes tokens shared by topics."
    )
    topic_positions: int = Field(
        2000,
        ge=10,
        le=200_000,
        description="Positions, drawn at random by seed, that topics are made of (memory: x top_k x 8 bytes).",
    )

    @model_validator(mode="after")
    def _topics_fit(self) -> LogitDifferenceParams:
        if self.topic_positions * self.top_k > MOST_KEPT:
            raise ValueError(
                f"topic_positions x top_k is {self.topic_positions * self.top_k}; keep it at most {MOST_KEPT} by "
                "lowering either."
            )
        return self


class LogitDifferenceResult(MethodResult):
    """Which next tokens finetuning favoured on this text, judged by expected occurrences."""

    identical: bool = Field(description="Whether every number is exactly the same in both models.")
    words: list[RisenWord] = Field(description="Content words with the firmest rise: the evidence for a topic.")
    strong_words: int = Field(description="Number of content words beyond the null level.")
    needed_strong_words: int = Field(description="As many are needed to stand out.")
    risen: list[TokenRow] = Field(description="Top of the ordering; descriptive: it has a top under any finetune.")
    fallen: list[TokenRow]
    ordering: Ordering
    topics: list[TopicRow] = Field(description="Groups of tokens that rise together, by mass.")
    topic_stability: dict[int, float] = Field(
        description="Number of topics tried -> stability of the least stable one."
    )
    position_profile: list[PositionRow] = Field(description="Size of the logit differences by position in the text.")
    new_tokens: list[NewTokenRow] = Field(
        description="Tokens added by the finetune that it expects most; the lists compare the common tokens only."
    )
    new_tokens_per_thousand: float = Field(description="Expected occurrences of all added tokens per 1,000 positions.")
    extraction: Extraction
    layer: int | None = Field(description="Absolute layer that was read; None: the models' output.")
    left_out: int = Field(
        description=(
            "Special tokens, and tokens negligible under both models, left out of the lists; the `tokens` view can "
            "show them."
        )
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
            lines.append(
                "content words, expected per 1,000 positions base -> finetuned (log odds ± error; * beyond the null "
                "level):"
            )
            lines += [row.as_text() for row in self.words]
        for name, rows in (("risen", self.risen), ("fallen", self.fallen)):
            if rows:
                lines.append(f"{name} by {self.ordering}: token occurrence% share-positive mean-difference log-odds z")
                lines += [
                    (
                        f"  {row.token!r} {row.occurrence:.1f}% {row.share_positive:.2f} {row.mean_difference:+.2f} "
                        f"{row.log_odds:+.2f} {row.log_odds_z:+.1f}"
                    )
                    for row in rows
                ]
        if self.topics:
            curve = ", ".join(f"{number}: {value:.2f}" for number, value in self.topic_stability.items())
            lines.append(f"topics of tokens that rise together (stability by number of topics: {curve}):")
            lines += [row.as_text() for row in self.topics]
        if self.position_profile:
            profile = ", ".join(f"{row.first}-{row.last}: {row.mean_size:.3g}" for row in self.position_profile)
            lines.append(f"mean |logit difference| by position: {profile}")
        if self.new_tokens:
            added = ", ".join(f"{row.token!r} {row.per_thousand:.3g}" for row in self.new_tokens)
            lines.append(
                f"tokens added by the finetune, {self.new_tokens_per_thousand:.3g} expected per 1,000 positions: "
                f"{added}"
            )
        lines.append(
            (
                f"{self.positions} positions of {self.samples} samples, top_k {self.top_k}; position 0 is the "
                f"{self.position_zero}; {self.left_out} special or never predicted tokens left out"
            )
            + (
                ""
                if self.layer is None
                else f"; read by {self.extraction} at layer {self.layer}, where the null level was not measured"
            )
        )
        return "\n".join(lines)


class LogitDifference(CorpusMethod[LogitDifferenceParams, LogitDifferenceResult]):
    """Diff mining: on text that has nothing to do with the finetune, which next tokens does the finetuned model favour
    over the base? At every position the logit difference (finetuned minus base) is taken over the whole vocabulary;
    tokens are ordered by how often they are among the largest differences, the share of positions at which they rose,
    their mean difference, or the z of their log odds. Content words whose expected occurrences rose beyond what a
    finetune that taught nothing shows are the evidence for a topic; `words` lists them first. The raw lists (`risen`,
    `fallen`) and `topics` (tokens that rise together, by NMF) have a top under any finetune: rare tokens there mean
    nothing by themselves, and a topic without strong words may be drift. Views: `tokens` (any ordering, filtered,
    paged), `token` (one word), `topics` (tokens, exemplar texts), `positions` (early against late), `new_tokens` (added
    by the finetune)."""

    name: ClassVar[str] = "logit_diff_topk_occurring"
    title: ClassVar[str] = "Logit difference (diff mining)"
    version: ClassVar[int] = 3
    Params: ClassVar[type[BaseModel]] = LogitDifferenceParams
    Result: ClassVar[type[MethodResult]] = LogitDifferenceResult
    cost: ClassVar[Cost] = "minutes"
    in_overview: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = {
        "tokens": View(
            "tokens",
            "The vocabulary by any ordering and sign, filtered by text, paged.",
            views.TokensParams,
            views.tokens,
        ),
        "token": View(
            "token", "All numbers of one word: its variants and their merged log odds.", views.TokenParams, views.token
        ),
        "topics": View(
            "topics",
            "Topics: their tokens with weights, and the texts where they are strongest.",
            views.TopicsParams,
            views.topics,
        ),
        "positions": View(
            "positions",
            "Size of the differences and the tokens risen most, by position in the text.",
            views.PositionsParams,
            views.positions,
        ),
        "new_tokens": View(
            "new_tokens",
            "Tokens that the finetune added, by expected occurrences.",
            views.NewTokensParams,
            views.new_tokens,
        ),
    }
    figures: ClassVar[Sequence[Figure]] = (
        Figure("scatter", "Mean logit difference against occurrence in the top K", figures.scatter),
        Figure("bars", "Content words whose expected occurrences rose most", figures.bars),
        Figure("topics", "Tokens of each topic", figures.topics),
        Figure("positions", "Size of the logit differences by position", figures.positions),
    )

    def token_lists(self, record: RunRecord) -> Sequence[TokenList]:
        return [*super().token_lists(record), *views.token_lists(record)]

    def accumulator(self, pair: LoadedPair, params: LogitDifferenceParams, corpus: TokenizedCorpus) -> Accumulator:
        from diffing_mcp.methods.logit_diff_topk_occurring.accumulator import (
            LogitDifferenceAccumulator,
            chosen_positions,
        )
        from diffing_mcp.methods.texts.words import vocabulary

        merge = vocabulary(pair.tokenizer, pair.vocab_size).word_index if params.normalise else None
        keep = 0 if params.topic_entries == "none" else params.topic_positions
        if params.extraction == "patchscope":
            keep = min(keep, params.patchscope_positions)
        statistics = LogitDifferenceAccumulator(
            pair.vocab_size, params.top_k, merge, pair.device, corpus, keep, params.seed
        )
        if params.extraction == "logits":
            return statistics
        from diffing_mcp.methods.logit_diff_topk_occurring.extraction import ExtractedAccumulator
        from diffing_mcp.model_pairs.layers import resolve_layer

        layer = resolve_layer(params.extraction_layer, pair.num_layers).absolute
        wanted = params.patchscope_positions if params.extraction == "patchscope" else 0
        # The positions kept for topics are among those read, because both are drawn in one order.
        return ExtractedAccumulator(
            pair,
            statistics,
            layer,
            params.extraction,
            chosen_positions(corpus.tokens, wanted, params.seed, pair.device),
        )

    def summarise(
        self, accumulator: Any, pair: LoadedPair, params: LogitDifferenceParams, run: RunWriter
    ) -> LogitDifferenceResult:
        from diffing_mcp.methods.logit_diff_topk_occurring.summary import summarise

        if params.extraction == "logits":
            return summarise(accumulator, None, pair, params, run)
        return summarise(accumulator.statistics, accumulator.layers[0], pair, params, run)

    def estimate(self, pair: PairSize, params: LogitDifferenceParams) -> CostEstimate:
        read = super().estimate(pair, params)
        if params.extraction != "patchscope":
            return read
        positions = min(params.patchscope_positions, read.tokens // 2)
        return pair.cost(read.tokens + 2 * positions, read.forward_passes + 2 * -(-positions // 256), bytes=read.bytes)
