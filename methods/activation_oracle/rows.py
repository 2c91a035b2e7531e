"""Rows of the oracle's results and views. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

Kind = Literal["finetuned", "base", "difference", "vector", "opposite"]
Mode = Literal["token", "segment", "sequence"]


class OracleAnswer(BaseModel):
    """One answer, and the activations that it is about."""

    kind: Kind
    mode: Mode
    question: str
    context: int = Field(description="Index of the context; 0 for a vector.")
    position: int = Field(description="Last token read, counted from the end of the context (-1 is its last token).")
    answer: str = Field(description="UNTRUSTED text of a model.")


class AnswerGroup(BaseModel):
    """Answers to one question on one kind of activations."""

    kind: Kind
    question: str
    answers: int
    examples: list[str] = Field(description="UNTRUSTED. The most frequent answers, trimmed.")

    def as_text(self) -> str:
        """One line."""
        return f"  {self.kind} ({self.answers}): " + " ".join(
            f"⟦{' '.join(answer.split())}⟧" for answer in self.examples
        )


class OracleWord(BaseModel):
    """A content word in more answers on one kind of activations than on the kind it is compared with."""

    kind: Kind
    word: str
    count: int = Field(description="Answers that contain it.")
    compared: int = Field(description="Answers on the compared activations that contain it.")
    surprise: float = Field(description="-log10 p of Fisher's exact test, one-sided.")
    strong: bool

    def as_text(self) -> str:
        """`word 9:1 (p 10^-3.1)`, with a star when strong."""
        return f"{'*' if self.strong else ''}{self.word} {self.count}:{self.compared} (p 10^-{self.surprise:.1f})"
