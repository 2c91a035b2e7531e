"""Parameters, rows and result of logit-difference mining."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, model_validator

from diffing_mcp.methods.contract import CorpusMethodParams, MethodResult
from diffing_mcp.methods.texts.words import EvidenceWord
from diffing_mcp.model_pairs.layers import Layer

Ordering = Literal["top_k_occurring", "fraction_positive_diff", "mean_difference", "log_odds_z"]
Extraction = Literal["logits", "logit_lens", "patchscope"]
TopicEntries = Literal["magnitude", "occurrence", "none"]
Factorisation = Literal["frobenius", "kullback_leibler", "orthogonal"]
MOST_KEPT = 20_000_000
"""Largest number of differences kept for topics."""
NULL_LOG_ODDS = 1.5
"""Log odds from which on a word counts as strong."""


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
    extraction_layer: Layer = Field(
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


class TokenRow(BaseModel):
    """A token's (or merged word's) numbers over all compared positions."""

    token: str
    occurrence: float = Field(
        description="Percent of positions at which it is among the top_k differences of the list's sign."
    )
    share_positive: float = Field(description="Share (0 to 1) of positions at which its logit rose.")
    mean_difference: float = Field(description="Mean of finetuned minus base logit.")
    log_odds: float = Field(
        description=(
            "Shrunken log ratio of its expected occurrences, finetuned over base, in nats; near 0 for tokens that "
            "neither model predicts."
        )
    )
    log_odds_z: float = Field(
        description=(
            "z-score of its log odds under an informative Dirichlet prior (Monroe et al. 2008); orders, is no test."
        )
    )


class RisenWord(BaseModel):
    """A content word that the finetuned model expects more often, variants merged."""

    word: str
    log_odds: float = Field(description="As in TokenRow, over all variants.")
    error: float | None = Field(description="Standard error of log_odds over the texts read; None with too few texts.")
    per_thousand_base: float = Field(description="Expected occurrences per 1,000 positions under base.")
    per_thousand_finetuned: float
    strong: bool = Field(description="Beyond the level that a finetune which taught nothing reaches.")

    def as_text(self) -> str:
        """One line, with a star when strong."""
        error = "?" if self.error is None else f"{self.error:.2f}"
        return (
            f"  {'*' if self.strong else ' '} {self.word}: {self.per_thousand_base:.3g} -> "
            f"{self.per_thousand_finetuned:.3g} ({self.log_odds:+.2f} ± {error})"
        )


class TopicRow(BaseModel):
    """A group of tokens that rose together, of a non-negative matrix factorisation of positions x tokens."""

    topic: int
    mass: float = Field(description="Share (0 to 1) of what all topics explain.")
    prevalence: float = Field(description="Share (0 to 1) of positions to which it contributes most.")
    concentration: float = Field(description="1 - entropy of its weights / log(tokens): 1 = a single token.")
    stability: float | None = Field(
        description=(
            "Mean cosine with its match in random halves of the texts; from 0.8 on it can be trusted to be there."
        )
    )
    strong_words: int = Field(
        description="Strong content words among its first 20 tokens; 0: it may be drift that every finetune shows."
    )
    tokens: list[str]
    exemplar: str = Field(
        description="The text around its strongest position; the topic's tokens rose as continuations at the mark ▸."
    )

    def as_text(self) -> str:
        """Two lines."""
        stability = "?" if self.stability is None else f"{self.stability:.2f}"
        return (
            f"  {self.topic}: mass {self.mass:.2f} prevalence {self.prevalence:.2f} concentration "
            f"{self.concentration:.2f} stability {stability} strong words {self.strong_words}: "
            f"{' '.join(repr(token) for token in self.tokens)}\n"
            f"    at {self.exemplar!r}"
        )


class PositionRow(BaseModel):
    """Positions of the texts and how much the models differ there."""

    first: int
    last: int
    positions: int = Field(description="Positions read.")
    mean_size: float = Field(description="Mean of |finetuned - base logit| over the vocabulary.")


class NewTokenRow(BaseModel):
    """A token that only the finetuned model's tokenizer knows."""

    id: int
    token: str
    per_thousand: float = Field(description="Expected occurrences per 1,000 positions under the finetuned model.")


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
