"""Parameters, rows and result of the activation difference lens. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from diffing_mcp.methods.contract import HiddenStatesParams
from diffing_mcp.methods.directions.lens_words import NULL_Z, LensToken
from diffing_mcp.methods.results import MethodResult
from diffing_mcp.methods.texts.words import EvidenceWord
from diffing_mcp.model_pairs.layers import Layer
from diffing_mcp.model_pairs.specs import Side

Source = Literal["difference", "base", "finetuned"]
Sign = Literal["promoted", "suppressed"]
SOURCES: tuple[Source, ...] = ("difference", "base", "finetuned")
LENS_DEPTH = 100
"""Tokens stored of each lens list."""


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


class ActivationDifferenceLensParams(HiddenStatesParams):
    """Parameters of `activation_difference_lens`, with those of the corpus."""

    layers: tuple[Layer, ...] = Field(
        (0.5, 0.95),
        min_length=1,
        description=(
            "Relative depths in [0, 1] (floats) or absolute layers (integers). Late ones read best through the lens, "
            "middle ones with patchscope."
        ),
    )
    positions: int = Field(
        5,
        ge=1,
        le=128,
        description="First positions kept one by one (in a chat also the three tokens before the answer).",
    )
    lens_side: Side = Field("finetuned", description="Whose final norm and unembedding read the vectors.")
    random_directions: int = Field(
        128,
        ge=64,
        le=4096,
        description="Random Gaussian directions of the same norm against which lens scores are standardised.",
    )
    list_length: int = Field(
        8,
        ge=1,
        le=50,
        description="Tokens of each list in the result (fewer when there are many layers and positions).",
    )


class LensWord(BaseModel):
    """A content word among the first of the lens lists."""

    word: str
    z: float = Field(description="Highest z over layers and positions.")
    places: int = Field(description="Layers and positions at which it is among the first.")


class ActivationDifferenceLensResult(MethodResult):
    """Mean activation differences by layer and position, and what they read as."""

    identical: bool = Field(description="Whether every number is exactly the same in both models.")
    words: list[LensWord] = Field(
        description="Content words that several positions promote: candidates for a topic, not proof of one."
    )
    rows: list[PositionRow]
    position_zero: str = Field(description="What position 0 is.")
    stored: str | None = Field(
        None, description="Stored activations that were read, and what they leave out; None: a corpus."
    )
    samples: int
    lens_side: Side
    random_directions: int

    def evidence_words(self) -> list[EvidenceWord]:
        """Words that the lens promotes, for `overview`; a score of 1 is where words that mean nothing end."""
        return [EvidenceWord(word=row.word, score=row.z / NULL_Z) for row in self.words]

    def as_text(self) -> str:
        lines = [self.headline]
        if self.words:
            lines.append(
                "words promoted (highest z, places): "
                + ", ".join(f"{row.word} {row.z:.1f}x{row.places}" for row in self.words)
            )
        lines.append("layer:position count |diff|/|act| stability snr | promoted tokens (z) | suppressed")
        for row in self.rows:
            stability = "-" if row.stability is None else f"{row.stability:.3f}"
            noise = "-" if row.signal_to_noise is None else f"{row.signal_to_noise:.1f}"
            promoted = " ".join(f"{token.token!r} {token.z:.1f}" for token in row.promoted)
            suppressed = " ".join(repr(token.token) for token in row.suppressed)
            lines.append(
                f"{row.layer}:{row.position} {row.count} {row.relative_norm:.3g} {stability} {noise} | {promoted} | "
                f"{suppressed}"
            )
        if self.stored:
            lines.append(f"read from {self.stored}")
        lines.append(
            f"{self.samples} samples; position 0 is the {self.position_zero}; `all` pools later positions; lens of the "
            f"{self.lens_side} side, z against {self.random_directions} random directions; as a "
            "direction: vector=RUN/LAYER:POSITION:difference"
        )
        return "\n".join(lines)
