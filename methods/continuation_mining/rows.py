"""Rows of continuation mining's results and views. Torch-free."""

from __future__ import annotations

from pydantic import BaseModel, Field


class NgramRow(BaseModel):
    """Words in a row, and how many continuations of each model contain them."""

    ngram: str
    words: int
    finetuned: int = Field(description="Continuations of the finetuned model that contain it.")
    base: int = Field(description="Continuations of the base model that contain it.")
    texts: int = Field(description="Different texts in which the model that writes it more often wrote it.")
    surprise: float = Field(description="-log10 p of Fisher's exact test, one-sided.")
    strong: bool = Field(description="Holds a content word and is beyond what equal models show.")

    def as_text(self) -> str:
        """`ngram 9:1 (p 10^-3.1)`, with a star when strong."""
        return f"{'*' if self.strong else ''}{self.ngram!r} {self.finetuned}:{self.base} (p 10^-{self.surprise:.1f})"


class ContinuationRow(BaseModel):
    """One position and what each model says next there. Texts are untrusted."""

    before: str = Field(description="End of the text up to the position.")
    variation: float = Field(description="Total variation distance of the next-token distributions, 0 to 1.")
    base: str = Field(description="UNTRUSTED greedy continuation of the base model.")
    finetuned: str = Field(description="UNTRUSTED greedy continuation of the finetuned model.")

    def as_text(self) -> str:
        """One line."""
        return f"  {self.variation:.2f} {self.before!r} base ⟦{' '.join(self.base.split())}⟧ finetuned ⟦{' '.join(self.finetuned.split())}⟧"
