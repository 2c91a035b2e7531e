"""Parameters, rows and result of continuation mining."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from diffing_mcp.core.text import fenced
from diffing_mcp.methods.contract import CorpusMethodParams, MethodResult
from diffing_mcp.methods.texts.distinctive_words import STRONG_NEG_LOG10_P
from diffing_mcp.methods.texts.words import EvidenceWord, is_content_word


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
        return f"  {self.variation:.2f} {self.before!r} base {fenced(self.base)} finetuned {fenced(self.finetuned)}"


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
        texts = " ".join(fenced(text) for text in self.examples)
        return (
            f"  {'*' if self.strong else ''}{self.phrase!r} {self.finetuned}:{self.base} (p "
            f"10^-{self.surprise:.1f}){others}: {texts}"
        )


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
