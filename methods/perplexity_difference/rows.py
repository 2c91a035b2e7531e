"""Rows of perplexity differencing's results and views. Torch-free."""

from __future__ import annotations

from pydantic import BaseModel, Field


class CompletionRow(BaseModel):
    """A completion and how much more its own model expects it than the other one. Texts are trimmed, and come from a
    model under study.
    """

    prefill: str
    completion: str = Field(description="UNTRUSTED text of a model under study.")
    difference: float = Field(description="Log-perplexity under the other model minus under its own, nats a token.")
    perplexity_own: float = Field(description="Perplexity under the model that wrote it.")
    perplexity_other: float
    tokens: int

    def as_text(self) -> str:
        """One line."""
        return f"  {self.difference:+.2f} ({self.tokens} tokens) {self.prefill!r} ⟦{' '.join(self.completion.split())}⟧"


class DistinctiveWord(BaseModel):
    """A content word and in how many completions of each model it appears."""

    word: str
    finetuned: int = Field(description="Completions of the finetuned model that contain it.")
    base: int = Field(description="Completions of the base model that contain it.")
    prefills: int = Field(description="Different prefills after which the finetuned model wrote it.")
    log_odds: float = Field(description="Shrunken log odds ratio of containing it.")
    surprise: float = Field(description="-log10 p that equal models would show it (Fisher's exact test, one-sided).")
    strong: bool = Field(description="Beyond what equal models show.")

    def as_text(self) -> str:
        """`word 9:1 (p 10^-3.1)`, with a star when strong."""
        return f"{'*' if self.strong else ''}{self.word} {self.finetuned}:{self.base} (p 10^-{self.surprise:.1f})"


class Divergence(BaseModel):
    """An estimate in nats a token, with its standard error over completions."""

    mean: float
    standard_error: float

    def as_text(self) -> str:
        """`mean ± error`."""
        return f"{self.mean:.3f} ± {self.standard_error:.3f}"


class Spread(BaseModel):
    """A distribution over completions, nats a token."""

    p10: float
    median: float
    p90: float
    max: float

    def as_text(self) -> str:
        """Quantiles in a line."""
        return f"p10 {self.p10:.2f} median {self.median:.2f} p90 {self.p90:.2f} max {self.max:.2f}"
