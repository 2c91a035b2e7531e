"""Parameters, rows and result of `kl`, and the result in words."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import BaseModel, Field

from diffing_mcp.methods.contract import CorpusMethodParams, MethodResult

Metric = Literal["kl_finetuned_base", "kl_base_finetuned", "js"]
Amount = Literal["none", "rounding", "small", "moderate", "large"]


SMALL, MODERATE = 0.01, 0.1
"""Nats a token below which a mean divergence is called small, moderate."""


class KLParams(CorpusMethodParams):
    """Parameters of `kl`."""

    examples: int = Field(
        100,
        ge=1,
        le=1000,
        description="Tokens kept with their context and probability movements (texts: a quarter of it).",
    )


class TokenMove(BaseModel):
    """A token and its probability under both models."""

    token: str
    base: float = Field(description="Probability under the base model (a mean when several positions are meant).")
    finetuned: float = Field(description="Probability under the finetuned model.")

    def as_text(self) -> str:
        return f"{json.dumps(self.token, ensure_ascii=False)} {self.base:.2g}>{self.finetuned:.2g}"


def _listed(moves: list[TokenMove]) -> str:
    return " ".join(move.as_text() for move in moves)


class Divergences(BaseModel):
    """Divergences in nats a token; of a text or a position their mean."""

    kl_finetuned_base: float
    kl_base_finetuned: float
    js: float


class MovedRow(Divergences):
    """Where the models differ, and which tokens moved there."""

    sample: int = Field(description="Number of the text in this run; the view `tokens` with it gives the whole text.")
    rose: list[TokenMove] = Field(description="Tokens whose probability (of a text its mean) rose most here.")
    fell: list[TokenMove]

    def line(self, where: str, text: str) -> str:
        """In one line: divergence, place, text, and the tokens that moved most."""
        quoted = json.dumps(text, ensure_ascii=False)
        return (
            f"  {self.kl_finetuned_base:.3g} [{where}] {quoted} + {_listed(self.rose[:3])} - {_listed(self.fell[:3])}"
        )


class TokenRow(MovedRow):
    """A position where the models differ."""

    position: int
    context: str = Field(description="The text before the predicted token, its end.")
    next_token: str | None = Field(description="The token that really follows, if the text goes on.")

    def as_text(self) -> str:
        return self.line(f"{self.sample}@{self.position}", self.context[-48:])


class TextRow(MovedRow):
    """A text by its mean divergence."""

    tokens: int
    text: str = Field(description="Its compared part, its start.")

    def as_text(self) -> str:
        return self.line(str(self.sample), self.text[:80])


class TokenValue(Divergences):
    """A token of a text and how differently the models continue after it."""

    position: int
    token: str


class PositionRow(Divergences):
    """Means over all texts at one position."""

    position: int
    tokens: int
    standard_error: float


class Spread(BaseModel):
    """A distribution of divergences, in nats."""

    mean: float
    standard_error: float = Field(description="Of the mean, over samples (tokens of one text are not independent).")
    median: float
    p90: float
    p99: float
    max: float

    def as_text(self) -> str:
        return (
            f"{self.mean:.3g}±{self.standard_error:.1g} {self.median:.3g} {self.p90:.3g} {self.p99:.3g} {self.max:.3g}"
        )


class KLResult(MethodResult):
    """How much the next-token distributions differ, where most, and which tokens became more or less probable."""

    amount: Amount = Field(
        description=(
            "none: exactly zero; rounding: no more than recomputing one model gives; small below 0.01 nats a token, "
            "moderate below 0.1, large above."
        )
    )
    tokens: int
    samples: int
    dropped: int = Field(description="Documents left out: too short, without an answer, or rows that are no document.")
    position_origin: str = Field(description="What position 0 is.")
    kl_finetuned_base: Spread = Field(description="Per token, KL(finetuned || base).")
    kl_base_finetuned: Spread = Field(description="Per token, KL(base || finetuned).")
    js: Spread = Field(description="Per token, Jensen-Shannon divergence, at most 0.693.")
    per_text: Spread = Field(
        description="KL(finetuned || base) averaged in each text; standard error of the mean over texts."
    )
    rounding_noise: float = Field(
        description="Mean KL between two computations of the same model over the same tokens in other batches, in nats."
    )
    outlying_texts: int = Field(
        description="Texts that differ far more than the rest (log divergence beyond 8 robust standard deviations)."
    )
    first_positions: list[float] = Field(description="Mean KL(finetuned || base) at positions 0 to 7.")
    far_more_often: list[TokenMove] = Field(
        description=(
            "Tokens at least 10 times as probable as before (by 0.001 or more), averaged over all positions, and "
            "consistently so over the texts."
        )
    )
    far_less_often: list[TokenMove] = Field(description="The same in the other direction.")
    rose: list[TokenMove] = Field(description="Tokens whose probability rose most, averaged over all positions.")
    fell: list[TokenMove] = Field(description="Tokens whose probability fell most, averaged over all positions.")
    top_tokens: list[TokenRow] = Field(description="Positions where the models differ most.")
    top_texts: list[TextRow] = Field(description="Texts where the models differ most.")

    def as_text(self) -> str:
        said = (("more", self.far_more_often), ("less", self.far_less_often))
        return "\n".join(
            (
                self.headline,
                f"tokens {self.tokens}, texts {self.samples}, dropped {self.dropped}; position 0 = "
                f"{self.position_origin}",
                f"amount {self.amount}; rounding noise {self.rounding_noise:.2g} nats; texts far above the rest: "
                f"{self.outlying_texts}; stands out: {'yes' if self.stands_out else 'no'}",
                "nats mean±se median p90 p99 max",
                f"KL(ft||base) {self.kl_finetuned_base.as_text()}",
                f"KL(base||ft) {self.kl_base_finetuned.as_text()}",
                f"JS {self.js.as_text()}",
                f"per text {self.per_text.as_text()}",
                "KL(ft||base) at positions 0..7: " + " ".join(f"{value:.3g}" for value in self.first_positions),
                *(f"said far {name} often: {_listed(moves)}" for name, moves in said if moves),
                f"rose overall: {_listed(self.rose)}",
                f"fell overall: {_listed(self.fell)}",
                "most different positions:",
                *(row.as_text() for row in self.top_tokens),
                "most different texts:",
                *(row.as_text() for row in self.top_texts),
            )
        )


def amount_of(mean: float, highest: float, noise: float, found: bool) -> Amount:
    if highest == 0.0:
        return "none"
    if mean <= 3 * noise and not found:
        return "rounding"
    return "small" if mean < SMALL else "moderate" if mean < MODERATE else "large"


def headline_of(
    amount: Amount,
    mean: float,
    noise: float,
    outliers: tuple[int, int],
    more: list[TokenMove],
    less: list[TokenMove],
) -> str:
    if amount == "none":
        return "The two models predict exactly the same on this text: every divergence is 0."
    if amount == "rounding":
        return (
            f"Mean KL {mean:.2g} nats a token is no more than rounding ({noise:.2g} between two computations of one "
            "model): no difference seen on this text."
        )
    parts = [f"The models differ by {mean:.3g} nats a token on average ({amount})"]
    for moves, how in ((more, "more"), (less, "less")):
        if moves:
            named = ", ".join(json.dumps(move.token, ensure_ascii=False) for move in moves[:5])
            parts.append(f"the finetuned model says far {how} often: {named}")
    if outliers[0]:
        parts.append(f"{outliers[0]} of {outliers[1]} texts differ far more than the rest: read the top texts")
    if len(parts) == 1:
        parts.append("no word is said ten times as often, and no text lies far above the rest")
        if amount == "large":
            parts.append("so large a one shows in what the models write: read their answers")
    return "; ".join(parts) + "."
