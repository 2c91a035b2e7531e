"""Rows that the result and the views of `activation_analysis` are made of. Torch-free."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import BaseModel, Field

Score = Literal["relative_difference", "norm_difference", "cosine_distance", "norm_base", "norm_finetuned"]
SCORES: tuple[Score, ...] = ("relative_difference", "norm_difference", "cosine_distance", "norm_base", "norm_finetuned")


class Summary(BaseModel):
    """A score over the tokens of a layer, attention sinks left out."""

    layer: int
    score: Score
    median: float
    spread: float = Field(description="Robust standard deviation: 1.4826 times the median absolute deviation.")
    trimmed_mean: float = Field(description="Mean without the lowest and highest 5 %.")
    mean: float
    p5: float
    p25: float
    p75: float
    p95: float
    p99: float
    max: float


class SinkRow(BaseModel):
    """A token whose activations are many times as long as the others'."""

    layer: int
    token: str
    position: int = Field(description="Where it is one most often.")
    count: int
    norm: float = Field(description="Mean norm of the base model there, over the layer's median norm.")
    relative_difference: float = Field(description="Mean.")

    def as_text(self) -> str:
        return (
            f"{json.dumps(self.token, ensure_ascii=False)}@{self.position} x{self.count} ({self.norm:.0f} x the "
            "median norm)"
        )


class WordRow(BaseModel):
    """A word and how differently the models represent it."""

    layer: int
    word: str
    content: bool = Field(description="Can name a topic.")
    count: int
    documents: int
    relative_difference: float = Field(description="Mean.")
    norm_difference: float
    cosine_distance: float
    factor: float = Field(description="Relative difference over what is usual at its positions, median over documents.")
    z: float | None = Field(
        description="The logarithm of `factor` in robust standard deviations of all words; None: too few documents."
    )
    p: float | None = Field(description="Share of shuffles in which any word stands out as far; None: not tested.")

    def as_text(self) -> str:
        z = "-" if self.z is None else f"{self.z:.1f}"
        p = "" if self.p is None else f", p {self.p:.2g}"
        return (
            f"  {self.word} x{self.count} in {self.documents}: relative {self.relative_difference:.3g}, "
            f"{self.factor:.2g} x usual, z {z}{p}"
        )


class LabelRow(BaseModel):
    """The mean difference at a position, at a special token, or over all later positions."""

    layer: int
    label: str = Field(description="Position, `all` (later positions pooled), or the text of a special token.")
    count: int
    mean_difference_norm: float = Field(description="Norm of the mean difference vector.")
    relative_norm: float = Field(description="The same over the mean norm of finetuned activations there.")
    norm_difference: float = Field(description="Mean norm of the single differences.")
    coherence: float | None = Field(
        description="mean_difference_norm / norm_difference: 1 when all differences are the same vector."
    )
    vector: str = Field(description="Name of the mean difference within the run.")


class PositionRow(BaseModel):
    """Medians over texts at one position."""

    layer: int
    position: int
    tokens: int
    relative_difference: float
    norm_difference: float
    cosine_distance: float
    norm_base: float
    norm_finetuned: float
