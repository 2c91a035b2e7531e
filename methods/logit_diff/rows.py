"""Rows of logit-difference mining's results and views. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

Ordering = Literal["top_k_occurring", "fraction_positive_diff", "mean_difference"]


class TokenRow(BaseModel):
    """A token's (or merged word's) numbers over all compared positions."""

    token: str
    occurrence: float = Field(description="Percent of positions at which it is among the top_k differences of the list's sign.")
    share_positive: float = Field(description="Share (0 to 1) of positions at which its logit rose.")
    mean_difference: float = Field(description="Mean of finetuned minus base logit.")
    log_odds: float = Field(
        description="Shrunken log ratio of its expected occurrences, finetuned over base, in nats; near 0 for tokens that neither model predicts."
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
        return f"  {'*' if self.strong else ' '} {self.word}: {self.per_thousand_base:.3g} -> {self.per_thousand_finetuned:.3g} ({self.log_odds:+.2f} ± {error})"
