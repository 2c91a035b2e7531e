"""Parameters, rows and result of the weight difference. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from diffing_mcp.methods.contract import MethodParams
from diffing_mcp.methods.directions.lens_words import NULL_Z, LensToken
from diffing_mcp.methods.results import MethodResult
from diffing_mcp.methods.texts.words import EvidenceWord
from diffing_mcp.model_pairs.layers import Layer
from diffing_mcp.model_pairs.specs import Side

ReadAs = Literal["writes", "reads", "tokens"]
"""`writes`: what the direction adds to the residual stream (behind the norm of a block's outputs, where a model has
one), through the logit lens. `reads`: which input embeddings lie along what it reads. `tokens`: the entries of a
vocabulary-sized singular vector (embeddings and unembedding)."""
Sign = Literal["+", "-"]
LIST_DEPTH = 40
"""Tokens stored of each list."""
NEEDED_STRONG_WORDS = 3
"""Strong content words of one direction and sign that make a finding."""
Name = Annotated[str, Field(min_length=1, max_length=100)]


class ModuleRow(BaseModel):
    """One parameter: how far it moved."""

    layer: int | None = Field(description="Absolute layer; None outside of the blocks.")
    module: str = Field(
        description="Name within its block, such as `mlp.down_proj`; other parameters than weights with their name."
    )
    part: str = Field(description="attention, mlp, norm, embedding, unembedding or other.")
    norm: float = Field(description="Frobenius norm of the difference.")
    relative_norm: float = Field(description="The same over the norm of the base's weight.")
    effective_rank: float | None = Field(
        description=(
            "Participation ratio (sum s^2)^2 / sum s^4 of the singular values s: 1 for one direction, k for k equal "
            "ones. None: no matrix."
        )
    )
    singular_values: list[float] = Field(description="The largest ones.")

    def as_text(self) -> str:
        """A line of numbers."""
        place = self.module if self.layer is None else f"{self.layer}:{self.module}"
        rank = "" if self.effective_rank is None else f", effective rank {self.effective_rank:.1f}"
        return f"{place} {100 * self.relative_norm:.3g} % of the base's norm{rank}"


class DirectionRow(BaseModel):
    """One singular direction of one matrix's difference, on the side of the residual stream (or of the vocabulary)."""

    vector: str | None = Field(
        description=(
            "`LAYER:MODULE:N` when other methods may take it as a vector; what `+` promotes is added by a positive "
            "strength."
        )
    )
    layer: int | None
    module: str
    index: int = Field(description="0 is the largest singular value.")
    singular_value: float
    share: float = Field(description="Share of the difference's squared norm.")
    read_as: ReadAs
    positive: list[LensToken] = Field(description="First tokens of the direction as it is oriented.")
    negative: list[LensToken] = Field(
        description="First tokens of its negative. Which sign a text uses cannot be told from weights."
    )

    def as_text(self) -> str:
        """Name, share and both lists."""
        place = self.module if self.layer is None else f"{self.layer}:{self.module}"
        lists = [
            " ".join(f"{token.token!r} {token.z:.1f}" for token in tokens) for tokens in (self.positive, self.negative)
        ]
        return (
            f"{place}:{self.index} {self.read_as} ({100 * self.share:.0f} % of the change) + {lists[0]} | - {lists[1]}"
        )


class PartRow(BaseModel):
    """All parameters of one part together."""

    part: str
    parameters: int = Field(description="Weight tensors.")
    changed: int = Field(description="Those of them that are not exactly equal.")
    relative_norm: float
    share: float = Field(description="Share of the whole difference's squared norm.")


class DirectionWord(BaseModel):
    """A content word that one write direction lists among its first tokens."""

    word: str
    z: float = Field(description="Highest z over the directions.")
    direction: str = Field(description="`LAYER:MODULE:N` and the sign.")
    together: int = Field(description="Strong content words that the same direction and sign list.")


class WeightDifferenceParams(MethodParams):
    """Parameters of `weight_difference`."""

    layers: tuple[Layer, ...] | None = Field(
        None,
        min_length=1,
        description=(
            "Relative depths in [0, 1] (floats) or absolute layers (integers); None: every weight of the model."
        ),
    )
    modules: tuple[Name, ...] | None = Field(
        None,
        min_length=1,
        max_length=32,
        description="Only these: `attention`, `mlp`, `norm`, `embedding`, `unembedding`, or names such as `down_proj`.",
    )
    directions: int = Field(3, ge=1, le=16, description="Largest singular directions read of each matrix.")
    lens_side: Side = Field("finetuned", description="Whose norm, unembedding and input embedding read the directions.")
    random_directions: int = Field(
        128, ge=64, le=4096, description="Random directions against which lens scores are standardised."
    )
    list_length: int = Field(6, ge=1, le=20, description="Tokens of each list in the result.")


class WeightDifferenceResult(MethodResult):
    """How far the weights moved, where, in how many directions, and what those read as."""

    identical: bool = Field(description="Whether every weight is exactly the same.")
    relative_norm: float = Field(
        description="Norm of the whole difference over that of the base's weights, of the chosen modules."
    )
    words: list[DirectionWord] = Field(
        description="Content words of the directions that are written, those of readable directions first."
    )
    parts: list[PartRow]
    modules: list[ModuleRow] = Field(description="The parameters that moved most, relative to the base.")
    directions: list[DirectionRow] = Field(description="The most readable directions.")
    lens_side: Side

    def evidence_words(self) -> list[EvidenceWord]:
        """Words of readable write directions, for `overview`; a score of 1 is where words that mean nothing end."""
        return [
            EvidenceWord(word=row.word, score=row.z / NULL_Z)
            for row in self.words
            if row.together >= NEEDED_STRONG_WORDS
        ]

    def as_text(self) -> str:
        lines = [self.headline]
        if self.identical:
            return self.headline
        if self.words:
            listed = (
                f"{row.word} {row.z:.1f} ({row.direction}{f', {row.together} strong together' if row.together else ''})"
                for row in self.words
            )
            lines.append("words written (highest z): " + ", ".join(listed))
        lines += [
            (
                f"{row.part}: {row.changed} of {row.parameters} tensors changed, {100 * row.relative_norm:.3g} % of "
                f"the base's norm, {100 * row.share:.0f} % of the change"
            )
            for row in self.parts
        ]
        lines.append("moved most: " + "; ".join(row.as_text() for row in self.modules))
        lines += [row.as_text() for row in self.directions]
        lines.append("signs of directions mean nothing by themselves; as a direction: vector=RUN/LAYER:MODULE:N")
        return "\n".join(lines)
