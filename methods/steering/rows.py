"""Rows of steering's result and views. Torch-free."""

from __future__ import annotations

from pydantic import BaseModel, Field


class StrengthRow(BaseModel):
    """How readable the texts are at one strength."""

    side: str
    strength: float
    coherent: float = Field(
        description=(
            "Share of the texts that are coherent: neither far less probable under the base than unsteered ones nor "
            "repetitive."
        )
    )
    log_perplexity: float = Field(
        description="Median log-perplexity of the texts under the unsteered base, nats a token."
    )
    repetition: float = Field(description="Median share of word triples that had come before in the same text.")

    def as_text(self) -> str:
        """A few figures."""
        return (
            f"{self.side} {self.strength:+.2g}: {100 * self.coherent:.0f} % coherent, log-ppl "
            f"{self.log_perplexity:.2f}, repetition {self.repetition:.2f}"
        )


class SteeredWord(BaseModel):
    """A content word and in how many texts it appears."""

    word: str
    strength: float
    steered: int = Field(description="Steered texts that contain it.")
    control: int = Field(description="Unsteered texts, and texts steered by a random direction, that contain it.")
    surprise: float = Field(description="-log10 p that equal texts would show it (Fisher's exact test, one-sided).")
    strong: bool = Field(description="Beyond what equal texts show.")

    def as_text(self) -> str:
        """`word 9:1 (p 10^-3.1)`, with a star when strong."""
        return (
            f"{'*' if self.strong else ''}{self.word} {self.steered}:{self.control} at {self.strength:+.2g} (p "
            f"10^-{self.surprise:.1f})"
        )


class Answer(BaseModel):
    """Answers to one prompt, steered and not, with the same random numbers. UNTRUSTED text of a model under study."""

    side: str
    prompt: str
    strength: float
    steered: str
    unsteered: str


class AnswerAndControl(Answer):
    """The same beside its control. UNTRUSTED text of a model under study."""

    random: str = Field(
        description=(
            "Control: under a random direction of the same length, with the same random numbers. What comes up here "
            "as well is no effect of the vector."
        )
    )
