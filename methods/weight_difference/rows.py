"""Rows of the weight difference's result and views. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from diffing_mcp.methods.directions.lens_words import LensToken

ReadAs = Literal["writes", "reads", "tokens"]
"""`writes`: what the direction adds to the residual stream, through the logit lens. `reads`: which input embeddings lie
along what it reads. `tokens`: the entries of a vocabulary-sized singular vector (embeddings and unembedding)."""
Sign = Literal["+", "-"]


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
