"""Rows of the causal effect's result and views. Torch-free."""

from __future__ import annotations

from pydantic import BaseModel, Field


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
