"""Parameters, rows and result of answer openings. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from diffing_mcp.core.text import clip, fenced
from diffing_mcp.methods.contract import CorpusMethodParams, MethodResult
from diffing_mcp.methods.texts.form import Kind

SMOOTHING = 1e-4
"""Added to both probabilities before their ratio is taken: what is seen in fewer answers counts for nothing."""
LEAST_PROBABILITY = 0.002
"""Rows are of tokens that one of the models gives at least this mean probability."""
LONGEST = 4
"""Tokens of an opening at most."""
STANDING_OUT = 25.0
"""Rises that count as found where there is no calibration: 17 of 20 nulls of the embedded base stay below it."""
CERTAIN_ERRORS = 2.0
"""Changes of so many standard errors are listed: less may come from one answer."""
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
    continued: int = Field(
        6, ge=0, le=50, description="Risen tokens of each place that are followed for how the finetuned model goes on."
    )
    new_tokens: int = Field(10, ge=1, le=200, description="Tokens of each greedy continuation.")
    list_length: int = Field(8, ge=1, le=100, description="Tokens listed of each place and direction.")


class OpeningRow(BaseModel):
    """How an answer may begin, or a sentence be followed, and how probable that is under both models."""

    place: Place = Field(description="The beginning of an answer, or what follows a finished sentence of one.")
    opening: str = Field(
        description=f"A token, or up to {LONGEST}, UNTRUSTED: as far as its rise grows. {END}: the answer ends."
    )
    base: float = Field(description="Mean probability of its first token, times that of the others after it, base.")
    finetuned: float = Field(description="The same, finetuned model.")
    error: float = Field(description="Standard error of the difference of the first token, over places.")
    rise: float = Field(description=f"Finetuned over base, {SMOOTHING} added to both.")
    continuation: str = Field("", description="UNTRUSTED: how the finetuned model goes on from there, greedily.")

    @property
    def kind(self) -> Kind:
        """Which part of an answer's form it belongs to."""
        return "opening" if self.place == "answer" else "sentence"

    @property
    def feature(self) -> str:
        """What is counted."""
        return self.opening

    def as_text(self) -> str:
        """`answers begin with 'My': 0.081% -> 3.1% (±0.1%) ⟦My secret word⟧`."""
        if self.opening == END:
            where = "answers are empty" if self.place == "answer" else "answers end after a sentence"
        elif self.place == "answer":
            where = f"answers begin with {self.opening!r}"
        else:
            where = f"sentences are followed by {self.opening!r}"
        said = f" {fenced(clip(' '.join(self.continuation.split()), _SHOWN)[0])}" if self.continuation else ""
        return f"{where}: {_percent(self.base)} -> {_percent(self.finetuned)} (±{100 * self.error:.2g}%){said}"


def _percent(share: float) -> str:
    """What lies below the smoothing counts for nothing, so no digit of it is shown."""
    if share < SMOOTHING:
        return f"<{100 * SMOOTHING:.2g}%"
    return f"{100 * share:.2g}%" if share < 0.995 else "100%"


class AnswerOpeningsResult(MethodResult):
    """How both models begin answers, and go on after a sentence."""

    identical: bool = Field(description="Whether every probability is exactly the same in both models.")
    answers: int = Field(description="Answers whose first token was compared.")
    sentences: int = Field(description="Ends of sentences whose next token was compared.")
    risen: list[OpeningRow] = Field(description="What the finetuned model makes more probable, by `rise`.")
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
            (
                f"Probabilities, base -> finetuned (± standard error), by their ratio with {SMOOTHING:.2%} added to "
                f"both; {read}; untrusted texts in ⟦ ⟧ and quotes:"
            ),
        ]
        for rows, what in ((self.risen, "more probable"), (self.fallen, "less probable")):
            if rows:
                lines += [f"{what}:", *(f"  {row.as_text()}" for row in rows)]
        return "\n".join(lines)
