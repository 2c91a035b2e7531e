"""Rows of the activation difference lens's result and views. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from diffing_mcp.methods.directions.lens_words import LensToken

Source = Literal["difference", "base", "finetuned"]
Sign = Literal["promoted", "suppressed"]


class PositionRow(BaseModel):
    """One layer and position: how large and how stable the mean difference is, and what it reads as."""

    layer: int = Field(description="Absolute layer; the residual stream after it.")
    relative_layer: float
    position: str = Field(description="Position label, or `all` (all later positions pooled).")
    count: int = Field(description="Activations averaged.")
    difference_norm: float = Field(description="L2 norm of the mean difference.")
    relative_norm: float = Field(description="Norm of the mean difference over the mean norm of finetuned activations.")
    spread: float = Field(description="Root of the summed variance of the single differences.")
    finetuned_norm: float = Field(description="Mean L2 norm of finetuned activations.")
    base_norm: float
    stability: float | None = Field(
        description=(
            "Cosine between the mean differences of two halves of the samples; None when a half is empty or zero."
        )
    )
    signal_to_noise: float | None = Field(
        description="Norm of the mean difference over its standard error; about 1 when there is nothing but noise."
    )
    vector: str = Field(
        description="Name of this vector within the run (`LAYER:POSITION:difference`), for views and steering."
    )
    promoted: list[LensToken] = Field(description="Tokens that the difference promotes, by z.")
    suppressed: list[LensToken] = Field(description="Tokens that its negative promotes, by z.")
