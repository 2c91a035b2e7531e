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


def _moves(rose: list[TokenMove], fell: list[TokenMove]) -> str:
    return " ".join(
        f"{sign} {' '.join(move.as_text() for move in moves[:3])}" for sign, moves in (("+", rose), ("-", fell))
    )


class TokenRow(BaseModel):
    """A position where the models differ."""

    sample: int = Field(description="Number of the text in this run; the view `tokens` with it gives the whole text.")
    position: int
    context: str = Field(description="The text before the predicted token, its end.")
    next_token: str | None = Field(description="The token that really follows, if the text goes on.")
    kl_finetuned_base: float
    kl_base_finetuned: float
    js: float
    rose: list[TokenMove] = Field(description="Tokens whose probability rose most here.")
    fell: list[TokenMove]

    def as_text(self) -> str:
        return (
            f"  {self.kl_finetuned_base:.3g} [{self.sample}@{self.position}] "
            f"{json.dumps(self.context[-48:], ensure_ascii=False)} {_moves(self.rose, self.fell)}"
        )


class TextRow(BaseModel):
    """A text by its mean divergence."""

    sample: int
    tokens: int
    kl_finetuned_base: float = Field(description="Mean over its tokens, nats.")
    kl_base_finetuned: float
    js: float
    text: str = Field(description="Its compared part, its start.")
    rose: list[TokenMove] = Field(description="Tokens whose probability, averaged over its positions, rose most.")
    fell: list[TokenMove]

    def as_text(self) -> str:
        return (
            f"  {self.kl_finetuned_base:.3g} [{self.sample}] {json.dumps(self.text[:80], ensure_ascii=False)} "
            f"{_moves(self.rose, self.fell)}"
        )


class Spread(BaseModel):
    """A distribution of divergences, in nats."""

    mean: float
    standard_error: float = Field(description="Of the mean, over samples (tokens of one text are not independent).")
    median: float
    p90: float
    p99: float
    max: float


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
        lines = [
            self.headline,
            f"tokens {self.tokens}, texts {self.samples}, dropped {self.dropped}; position 0 = {self.position_origin}",
            (
                f"amount {self.amount}; rounding noise {self.rounding_noise:.2g} nats; texts far above the rest: "
                f"{self.outlying_texts}; stands out: {'yes' if self.stands_out else 'no'}"
            ),
            "nats mean±se median p90 p99 max",
        ]
        for name, spread in (
            ("KL(ft||base)", self.kl_finetuned_base),
            ("KL(base||ft)", self.kl_base_finetuned),
            ("JS", self.js),
            ("per text", self.per_text),
        ):
            lines.append(
                f"{name} {spread.mean:.3g}±{spread.standard_error:.1g} {spread.median:.3g} {spread.p90:.3g} "
                f"{spread.p99:.3g} {spread.max:.3g}"
            )
        lines.append("KL(ft||base) at positions 0..7: " + " ".join(f"{value:.3g}" for value in self.first_positions))
        for name, moves in (("more", self.far_more_often), ("less", self.far_less_often)):
            if moves:
                lines.append(f"said far {name} often: " + " ".join(move.as_text() for move in moves))
        lines.append("rose overall: " + " ".join(move.as_text() for move in self.rose))
        lines.append("fell overall: " + " ".join(move.as_text() for move in self.fell))
        lines.append("most different positions:")
        lines += [row.as_text() for row in self.top_tokens]
        lines.append("most different texts:")
        lines += [row.as_text() for row in self.top_texts]
        return "\n".join(lines)


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
        parts.append("no single word or text stands out: the change is spread over all of them")
        if amount == "large":
            parts.append("so large a one shows in what the models write: read their answers")
    return "; ".join(parts) + "."
