"""Rows of logit-difference mining's results and views. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

Ordering = Literal["top_k_occurring", "fraction_positive_diff", "mean_difference", "log_odds_z"]
Extraction = Literal["logits", "logit_lens", "patchscope"]
TopicEntries = Literal["magnitude", "occurrence", "none"]
Factorisation = Literal["frobenius", "kullback_leibler", "orthogonal"]


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
