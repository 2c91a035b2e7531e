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
        return (
            f"  {self.variation:.2f} {self.before!r} base ⟦{' '.join(self.base.split())}⟧ finetuned "
            f"⟦{' '.join(self.finetuned.split())}⟧"
        )


class PhraseGroup(BaseModel):
    """Overlapping phrases of the finetuned model's continuations as one finding."""

    phrase: str = Field(description="The most surprising phrase of the group.")
    phrases: list[str] = Field(description="All of them, the most surprising first.")
    finetuned: int = Field(description="Continuations of the finetuned model that hold some of them.")
    base: int = Field(description="Continuations of the base model that do.")
    surprise: float = Field(description="That of `phrase`: -log10 p of Fisher's exact test, one-sided.")
    strong: bool = Field(description="Whether `phrase` is strong.")
    examples: list[str] = Field(description="UNTRUSTED continuations of the finetuned model that hold them.")

    def as_text(self) -> str:
        """Phrase and counts with the other phrases, then the examples."""
        others = f", also {', '.join(repr(phrase) for phrase in self.phrases[1:6])}" if len(self.phrases) > 1 else ""
        texts = " ".join(f"⟦{text}⟧" for text in self.examples)
        return (
            f"  {'*' if self.strong else ''}{self.phrase!r} {self.finetuned}:{self.base} (p "
            f"10^-{self.surprise:.1f}){others}: {texts}"
        )
