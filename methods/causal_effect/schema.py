"""Parameters, rows and result of the causal effect. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from diffing_mcp.methods.contract import CorpusMethodParams
from diffing_mcp.methods.directions.vectors import VECTOR_HELP, VectorSource
from diffing_mcp.methods.results import MethodResult


class EffectRow(BaseModel):
    """What one direction (or the subspace of all) does to the loss."""

    vector: str = Field(description="What the direction is.")
    layer: int
    loss_change: float = Field(description="Loss with the direction changed minus the model's own loss, nats a token.")
    low: float = Field(description="Lower end of the 95 % bootstrap interval over samples.")
    high: float = Field(description="Upper end.")
    share_of_gap: float | None = Field(
        description=(
            "Loss change over the loss gap of the models; 1: all of it. None where the gap is not beyond its own error."
        )
    )
    p_random: float = Field(description="Rank of its size among Gaussian directions, (1 + larger) / (1 + directions).")
    p_difference: float = Field(description="The same among differences of random base activations.")
    largest_null: float = Field(description="Largest absolute loss change of all these directions.")
    note: str = ""

    def as_text(self) -> str:
        """One line."""
        share = "-" if self.share_of_gap is None else f"{100 * self.share_of_gap:.0f} %"
        note = f" ({self.note})" if self.note else ""
        return (
            f"{self.loss_change:+.4f} [{self.low:+.4f}, {self.high:+.4f}] {share} p "
            f"{self.p_random:.3f}/{self.p_difference:.3f} nulls to {self.largest_null:.4f} | layer {self.layer} "
            f"{self.vector}{note}"
        )


class SampleRow(BaseModel):
    """One sample's losses, nats a token."""

    sample: int = Field(description="Index of the text.")
    tokens: int
    target_loss: float = Field(description="Of the model that is changed, unchanged.")
    other_loss: float
    changed_loss: float


class CausalEffectParams(CorpusMethodParams):
    """Parameters of `causal_effect`, with those of the corpus."""

    vectors: tuple[VectorSource, ...] = Field(
        min_length=1, max_length=16, description=f"Directions, tested one by one. {VECTOR_HELP}"
    )
    subspace: bool = Field(
        False, description="Test all directions together, as the subspace that they span (they must share a layer)."
    )
    mode: Literal["patch", "ablate"] = Field(
        "patch",
        description=(
            "`patch`: the projection becomes that of the other model on the same text; `ablate`: it becomes zero."
        ),
    )
    direction: Literal["base_to_ft", "ft_to_base"] = Field(
        "base_to_ft",
        description=(
            "`base_to_ft`: the finetuned model is changed, with the base's projections; `ft_to_base`: the reverse."
        ),
    )
    texts: tuple[Annotated[str, Field(max_length=20_000)], ...] | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="Own texts in place of the corpus (max_tokens of each are read); None: the corpus.",
    )
    max_samples: int = Field(32, ge=1, le=10_000, description="Documents read at most.")
    max_tokens: int = Field(
        48, ge=2, le=8192, description="Tokens of each document at most (of a chat: of the answer)."
    )
    random_directions: int = Field(
        24,
        ge=4,
        le=256,
        description=(
            "Gaussian directions, and as many differences of random base activations, as nulls. Below 19 nothing can "
            "stand out."
        ),
    )


class CausalEffectResult(MethodResult):
    """Loss changes beside their nulls."""

    rows: list[EffectRow]
    gap: float = Field(description="Loss of the other model minus loss of the changed one, nats a token.")
    gap_low: float = Field(description="Lower end of its 95 % bootstrap interval over samples.")
    gap_high: float
    target_loss: float = Field(description="Loss of the changed model, nats a token.")
    samples: int
    tokens: int = Field(description="Tokens whose loss counts (of chats: those of the answer).")
    identical: bool = Field(description="Whether both models give every text exactly the same loss.")

    def as_text(self) -> str:
        lines = [
            self.headline,
            (
                f"loss {self.target_loss:.4f} nats/token; other model {self.gap:+.4f} [{self.gap_low:+.4f}, "
                f"{self.gap_high:+.4f}]; {self.samples} samples, {self.tokens} tokens"
            ),
            "loss change [95 %] share of gap, p against Gaussian/difference directions:",
        ]
        return "\n".join([*lines, *(f"  {row.as_text()}" for row in self.rows)])
