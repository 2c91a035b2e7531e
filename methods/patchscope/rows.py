"""Rows of patchscope's result and views. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

Sign = Literal["promoted", "suppressed"]


class PatchscopeToken(BaseModel):
    """One token that a direction reads as."""

    token: str
    probability: float = Field(
        description="Mean probability over the prompts; 0 where some prompt has it not among its first."
    )
    z: float = Field(
        description=(
            "Its log-probability in standard deviations of what random directions of the same norm give this token."
        )
    )
    content: bool = Field(description="Starts a word that can name a topic.")


class ScaleRow(BaseModel):
    """How readable a direction is at one scale."""

    scale: float = Field(description="Norm of the direction in norms of the replaced activations.")
    sign: Sign
    agreement: float = Field(
        description="Weight of the content words that all prompts name and random directions do not."
    )
    null_agreement: float = Field(description="The same of random directions: their highest.")
    entropy: float = Field(description="Entropy of the mean next-token distribution, nats.")
    tokens: str = Field(description="First tokens.")
