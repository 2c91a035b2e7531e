"""Rows of weight amplification's result and views. Torch-free."""

from __future__ import annotations

from pydantic import BaseModel, Field


class WeightRow(BaseModel):
    """How readable the texts are at one weight."""

    weight: float = Field(
        description="0 is the base, 1 the finetuned model (with `config`: the configuration as it is written)."
    )
    coherent: float = Field(
        description=(
            "Share of the texts that are coherent: neither far less probable under the base than the plain "
            "finetune's, nor more repetitive, nor far shorter."
        )
    )
    log_perplexity: float = Field(description="Median log-perplexity of the texts under the base, nats a token.")
    repetition: float = Field(description="Median share of word triples that had come before in the same text.")

    def as_text(self) -> str:
        """A few figures."""
        return (
            f"weight {self.weight:g}: {100 * self.coherent:.0f} % coherent, log-ppl {self.log_perplexity:.2f}, "
            f"repetition {self.repetition:.2f}"
        )


class AmplifiedWord(BaseModel):
    """A content word and in how many texts it appears."""

    word: str
    weight: float
    amplified: int = Field(description="Amplified texts that contain it.")
    finetuned: int = Field(description="Texts of the plain finetuned model that contain it.")
    base: int = Field(description="Texts of the base that contain it (twice as many texts).")
    surprise: float = Field(
        description="-log10 p that texts of the base would show it so often (Fisher's exact test, one-sided)."
    )
    strong: bool = Field(description="Beyond what equal texts show.")

    def as_text(self) -> str:
        """`word 9:4:1 (p 10^-3.1)`, with a star when strong."""
        star = "*" if self.strong else ""
        return (
            f"{star}{self.word} {self.amplified}:{self.finetuned}:{self.base} at {self.weight:g} (p "
            f"10^-{self.surprise:.1f})"
        )


class Answer(BaseModel):
    """Answers to one prompt with the same random numbers. UNTRUSTED text of models under study."""

    prompt: str
    weight: float
    amplified: str
    finetuned: str
    base: str
