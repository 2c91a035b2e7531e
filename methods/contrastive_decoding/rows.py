"""Rows of contrastive decoding's result and views. Torch-free."""

from __future__ import annotations

from pydantic import BaseModel, Field


class AlphaRow(BaseModel):
    """The texts at one alpha."""

    alpha: float
    difference: float = Field(description="Mean log-probability under finetuned minus under base, nats a token.")
    coherent: float = Field(
        description="Share of texts neither repetitive nor, under the nearer model, far less probable than its own."
    )
    tokens: float = Field(description="Mean tokens of a text.")

    def as_text(self) -> str:
        """A few figures."""
        return (
            f"alpha {self.alpha:+.3g}: ft - base {self.difference:+.2f} nats/token, {100 * self.coherent:.0f} % "
            f"coherent, {self.tokens:.0f} tokens"
        )


class AmplifiedWord(BaseModel):
    """A content word and in how many texts it appears."""

    word: str
    alpha: float = Field(description="The amplification at which it comes up; below -1: away from the finetune.")
    amplified: int = Field(description="Texts at this alpha that contain it.")
    control: int = Field(
        description=(
            "Texts at the opposite alpha and of the plain model at the other end (base; for suppressed words "
            "finetuned) with it."
        )
    )
    surprise: float = Field(description="-log10 p that equal texts would show it (Fisher's exact test, one-sided).")
    strong: bool = Field(description="Beyond what equal texts show.")

    def as_text(self) -> str:
        """`word 9:1 at +3 (p 10^-3.1)`, with a star when strong."""
        return (
            f"{'*' if self.strong else ''}{self.word} {self.amplified}:{self.control} at {self.alpha:+.3g} (p "
            f"10^-{self.surprise:.1f})"
        )


class AmplifiedText(BaseModel):
    """A text and how much more the finetuned model expects it than the base. UNTRUSTED text of models under study."""

    alpha: float
    prompt: str
    text: str
    difference: float = Field(description="Nats a token.")

    def as_text(self) -> str:
        """One line."""
        return f"  {self.alpha:+.3g} ({self.difference:+.2f}) {self.prompt!r} ⟦{' '.join(self.text.split())}⟧"
