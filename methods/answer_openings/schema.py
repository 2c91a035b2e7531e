"""Parameters, rows and result of answer openings. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from diffing_mcp.core.text import clip
from diffing_mcp.methods.contract import CorpusMethodParams, MethodResult
from diffing_mcp.methods.texts.form import Kind

SMOOTHING = 1e-3
"""Added to both mean probabilities before their ratio is taken: a token seen once in a thousand answers."""
LEAST_PROBABILITY = 0.005
"""Rows are of tokens that one of the models gives at least this mean probability."""
STANDING_OUT = 12.0
"""Rises that count as found where there is no calibration."""
_SHOWN = 80

Place = Literal["answer", "sentence"]
PLACES: tuple[Place, ...] = ("answer", "sentence")
END = "⟨end of turn⟩"


class AnswerOpeningsParams(CorpusMethodParams):
    """Parameters of `answer_openings`, with those of the corpus."""

    corpus: str = Field(
        "chat_exchanges",
        description=(
            "Chats, such as the bundled `chat_exchanges`; of plain text only the ends of sentences are compared."
        ),
    )
    max_samples: int = Field(128, ge=1, le=1_000_000, description="Chats read at most.")
    continued: int = Field(4, ge=0, le=50, description="Risen tokens of each place whose continuations are shown.")
    new_tokens: int = Field(10, ge=1, le=200, description="Tokens of each greedy continuation.")
    list_length: int = Field(8, ge=1, le=100, description="Tokens listed of each place and direction.")


class OpeningRow(BaseModel):
    """A token at one place, and its mean probability there under both models."""

    place: Place = Field(description="First token of an answer, or what follows a finished sentence of one.")
    token: str = Field(description=f"{END}: the answer ends.")
    base: float = Field(description="Mean probability over places, base model.")
    finetuned: float = Field(description="The same, finetuned model.")
    error: float = Field(description="Standard error of the difference, over places.")
    rise: float = Field(description=f"Finetuned over base, {SMOOTHING} added to both.")
    continuation: str = Field("", description="UNTRUSTED: the token and how the finetuned model goes on, greedily.")

    @property
    def kind(self) -> Kind:
        """Which part of an answer's form it belongs to."""
        return "opening" if self.place == "answer" else "sentence"

    @property
    def feature(self) -> str:
        """What is counted."""
        return self.token

    def as_text(self) -> str:
        """`answers begin with 'My': 0.1% -> 3.1% (±0.1%, x18) ⟦My secret word⟧`."""
        if self.token == END:
            where = "answers are empty" if self.place == "answer" else "answers end after a sentence"
        elif self.place == "answer":
            where = f"answers begin with {self.token!r}"
        else:
            where = f"sentences are followed by {self.token!r}"
        said = f" ⟦{clip(' '.join(self.continuation.split()), _SHOWN)[0]}⟧" if self.continuation else ""
        factor = f"x{self.rise:.3g}" if self.rise >= 1 else f"x1/{1 / self.rise:.3g}"
        return f"{where}: {self.base:.1%} -> {self.finetuned:.1%} (±{self.error:.1%}, {factor}){said}"


class AnswerOpeningsResult(MethodResult):
    """How both models begin answers, and go on after a sentence."""

    identical: bool = Field(description="Whether every probability is exactly the same in both models.")
    answers: int = Field(description="Answers whose first token was compared.")
    sentences: int = Field(description="Ends of sentences whose next token was compared.")
    risen: list[OpeningRow] = Field(description="Tokens that the finetuned model makes more probable, by `rise`.")
    fallen: list[OpeningRow] = Field(description="Tokens that it makes less probable.")

    def highest(self, place: Place) -> float:
        """The largest rise at a place; 1 where nothing rose."""
        return max((row.rise for row in self.risen if row.place == place), default=1.0)

    def manner(self) -> list[OpeningRow]:
        """What rose beyond the fixed level, the furthest first."""
        return sorted((row for row in self.risen if row.rise >= STANDING_OUT), key=lambda row: -row.rise)

    def as_text(self) -> str:
        """The headline, then a line a token."""
        read = f"{self.answers} beginnings of answers and {self.sentences} ends of sentences were compared"
        lines = [
            self.headline,
            f"Mean probability of the next token, base -> finetuned; {read}; untrusted texts in ⟦ ⟧:",
        ]
        for rows, what in ((self.risen, "more probable"), (self.fallen, "less probable")):
            if rows:
                lines += [f"{what}:", *(f"  {row.as_text()}" for row in rows)]
        return "\n".join(lines)
