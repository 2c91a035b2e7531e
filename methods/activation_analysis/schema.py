"""Parameters, rows and result of the activation analysis. Torch-free."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import BaseModel, Field

from diffing_mcp.methods.contract import HiddenStatesParams
from diffing_mcp.methods.examples.views import ExampleRow
from diffing_mcp.methods.results import MethodResult
from diffing_mcp.model_pairs.layers import Layer

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


class ActivationAnalysisParams(HiddenStatesParams):
    """Parameters of `activation_analysis`, with those of the corpus."""

    layers: tuple[Layer, ...] = Field(
        (0.5,),
        min_length=1,
        max_length=64,
        description="Relative depths in [0, 1] (floats) or absolute layers (integers).",
    )
    examples: int = Field(20, ge=1, le=200, description="Examples kept of every score, layer and quantile bin.")


class ActivationAnalysisResult(MethodResult):
    """How far the activations are apart, and on which words."""

    identical: bool = Field(description="Whether every activation is exactly the same in both models.")
    tokens: int
    samples: int
    position_origin: str = Field(description="What position 0 is.")
    stored: str | None = Field(
        None, description="Stored activations that were read, and what they leave out; None: a corpus."
    )
    summaries: list[Summary] = Field(
        description="Scores by layer. relative_difference = |ft - base| / (|ft| + |base|), in [0, 1]."
    )
    sinks: list[SinkRow] = Field(
        description="Attention sinks, by token: left out of everything else but the profile and the labels."
    )
    standing_words: list[WordRow] = Field(description="Words that differ far more than others do.")
    words: list[WordRow] = Field(description="Content words of highest z, whether they stand out or not.")
    labels: list[LabelRow] = Field(
        description="Mean differences at the first positions, at special tokens, and over all later positions."
    )
    examples: list[ExampleRow] = Field(description="Tokens of highest relative difference, one a text.")

    def as_text(self) -> str:
        lines = [self.headline, f"tokens {self.tokens}, texts {self.samples}; position 0 = {self.position_origin}"]
        if self.stored:
            lines.append(f"read from {self.stored}")
        lines.append("layer score: median±spread trimmed_mean p95 p99 max")
        lines += [
            (
                f"{row.layer} {row.score}: {row.median:.3g}±{row.spread:.2g} {row.trimmed_mean:.3g} {row.p95:.3g} "
                f"{row.p99:.3g} {row.max:.3g}"
            )
            for row in self.summaries[:12]
        ]
        if self.sinks:
            lines.append(
                "attention sinks, left out: "
                + "; ".join(f"layer {row.layer} {row.as_text()}" for row in self.sinks[:6])
            )
        for name, rows in (
            ("words that stand out", self.standing_words),
            ("content words of highest z (layer)", self.words),
        ):
            if rows:
                lines.append(f"{name}:")
                lines += [f"{row.as_text()} ({row.layer})" for row in rows]
        if not self.identical:
            lines.append("mean difference by position or special token: layer:label |mean diff|/|act| coherence count")
            lines.append(
                "  "
                + "; ".join(
                    f"{row.layer}:{row.label} {row.relative_norm:.2g} {row.coherence or 0:.2g} {row.count}"
                    for row in self.labels[:40]
                )
            )
        if self.examples:
            lines.append("tokens of highest relative difference:")
            lines += [row.as_text() for row in self.examples[:8]]
        return "\n".join(lines)
