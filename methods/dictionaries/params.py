"""Parameters that both dictionary methods share. Torch-free."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from diffing_mcp.preprocessing.activation_sources import ActivationSourceParams
from diffing_mcp.preprocessing.text_sources import source_identity

MOST_READ = 2000
"""Latents that are read through the lens and have examples, at most."""


class DictionaryParams(ActivationSourceParams):
    """Activations, the dictionary and its training."""

    max_samples: int = Field(1000, ge=1, le=1_000_000, description="Documents read at most.")
    max_tokens: int = Field(64, ge=1, le=8192, description="Tokens of each document at most.")
    layer: int | float = Field(0.5, description="Relative depth (float) or absolute layer (integer).")
    expansion: float = Field(2.0, gt=0, le=256, description="Latents per dimension of the residual stream.")
    k: int = Field(
        32, ge=1, le=4096, description="Mean active latents a token (BatchTopK); half of the latents at most."
    )
    steps: int = Field(600, ge=1, le=10_000_000, description="Training steps.")
    batch_rows: int = Field(1024, ge=2, le=65_536, description="Tokens a step.")
    learning_rate: float | None = Field(
        None, gt=0, le=1, description="Highest learning rate of Adam; None: 0.04 / sqrt(d_model)."
    )
    patience: int | None = Field(
        5, ge=1, description="Validations (every 100 steps) without gain before the training stops; None: never."
    )
    training_seed: int = Field(0, ge=0, description="Initial weights and order of the tokens.")
    held_out: float = Field(
        0.2, gt=0, lt=1, description="Share of the tokens that judge the dictionary and are never trained on."
    )
    dictionary: str | None = Field(
        None,
        max_length=300,
        description=(
            "Local folder or hub id[//folder][@revision] of a trained dictionary to use instead of training one "
            "(operators only)."
        ),
    )
    top_latents: int = Field(8, ge=1, le=30, description="Latents in the result.")
    read_latents: int = Field(
        100,
        ge=1,
        le=MOST_READ,
        description="Latents, the first by rank, that get lens tokens and examples (those of the result always do).",
    )

    def latents(self, d_model: int) -> int:
        """Latents of a dictionary that is trained, for a residual stream of this width."""
        return max(2, round(self.expansion * d_model))


def identity(params: DictionaryParams) -> dict[str, Any]:
    """For `key_parts`: what decides the rows, and the content of a loaded dictionary."""
    from diffing_mcp.methods.dictionaries.files import content_hash

    parts = source_identity(params)
    return parts | {"dictionary": content_hash(params.dictionary)} if params.dictionary else parts


def operator_only(params: DictionaryParams) -> str | None:
    """Why only an operator may use them."""
    return "dictionary names a folder or a hub id; leave it out and one is trained" if params.dictionary else None
