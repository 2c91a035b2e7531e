"""Parameters, rows and result of PCA. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.methods.directions.lens_words import LensToken
from diffing_mcp.methods.results import MethodResult
from diffing_mcp.methods.texts.words import EvidenceWord
from diffing_mcp.model_pairs.layers import Layer
from diffing_mcp.model_pairs.specs import Side
from diffing_mcp.preprocessing.activation_sources import ActivationSourceParams

ENDS = ("positive", "negative")


def feature_name(layer: int, component: int, end: str) -> str:
    """Name of one end of a component in the run's examples."""
    return f"{layer}:component{component}:{end}"


class ProjectionExample(BaseModel):
    """A token whose activation lies far out on a component. Text of the corpus."""

    projection: float = Field(description="On the unit component, mean removed, in units of the residual stream.")
    context: str = Field(description="The text around it, the token between » and «.")


class ComponentRow(BaseModel):
    """One principal component at one layer."""

    layer: int
    component: int = Field(description="Counted from 1, largest variance first.")
    explained: float = Field(description="Share of the variance.")
    null_explained: float = Field(
        description="The share that this place has under shuffled pairing (`difference`), or in the other model."
    )
    stability: float = Field(
        description="Least |cosine| with the nearest component of either half of the samples; 1: the same direction."
    )
    mean_projection: float = Field(description="Of the mean on the component, over the standard deviation along it.")
    vector: str = Field(description="Name within the run for patchscope, steering and causal_effect.")
    promoted: list[LensToken] = Field(description="Lens of the component (the end on which the mean lies).")
    suppressed: list[LensToken] = Field(description="Lens of its negative.")
    positive: list[ProjectionExample]
    negative: list[ProjectionExample]

    def as_text(self) -> str:
        """Figures, lens and the first example of each end."""
        lists = " | ".join(
            " ".join(f"{token.token!r} {token.z:.1f}" for token in tokens)
            for tokens in (self.promoted, self.suppressed)
        )
        ends = " | ".join(rows[0].context for rows in (self.positive, self.negative) if rows)
        return (
            f"{self.layer}:{self.component} {100 * self.explained:.1f} % (null {100 * self.null_explained:.1f} %) "
            f"stable {self.stability:.2f} mean {self.mean_projection:+.1f} sd | {lists}\n"
            f"    {ends}"
        )


class PCAParams(ActivationSourceParams):
    """Parameters of `pca`, with those of the text or the collection."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: tuple[Layer, ...] = Field(
        (0.5,),
        min_length=1,
        max_length=64,
        description="Relative depths in [0, 1] (floats) or absolute layers (integers).",
    )
    of: Literal["difference", "base", "finetuned", "variance_gain"] = Field(
        "difference",
        description=(
            "Finetuned minus base token by token, either model alone, or the directions whose variance grew most "
            "(finetuned covariance minus base's)."
        ),
    )
    components: int = Field(5, ge=1, le=64, description="Components of each layer.")
    examples: int = Field(
        5,
        ge=1,
        le=50,
        description="Tokens kept at either end of a component, in each quantile bin, from different documents.",
    )
    lens_side: Side = Field("finetuned", description="Whose final norm and unembedding read the components.")
    random_directions: int = Field(
        128, ge=64, le=4096, description="Random directions against which lens scores are standardised."
    )


class ComponentWord(BaseModel):
    """A content word among the first of a stable component's lens lists."""

    word: str
    z: float = Field(description="Highest z over components.")
    vector: str = Field(description="Component at which it is reached.")


class PCAResult(MethodResult):
    """Principal components by layer, and what they read as."""

    identical: bool = Field(description="Whether the models' activations are exactly equal.")
    words: list[ComponentWord] = Field(
        description="Content words of stable components that the base model's own components do not reach."
    )
    rows: list[ComponentRow] = Field(description="The first components of each layer.")
    rows_left_out: int = Field(0, description="Components that the view `components` shows besides.")
    null_z: float = Field(
        description=(
            "z that the base model's own components reach in content words: what a lens reads without any finetune."
        )
    )
    tokens: int = Field(description="Tokens of the text.")
    of: str

    def evidence_words(self) -> list[EvidenceWord]:
        """Words of the components, for `overview`; a score of 1 is the null level."""
        return [EvidenceWord(word=row.word, score=row.z / self.null_z) for row in self.words]

    def as_text(self) -> str:
        lines = [self.headline]
        if self.words:
            lines.append(
                "words (highest z): " + ", ".join(f"{row.word} {row.z:.1f} at {row.vector}" for row in self.words)
            )
        lines.append(
            "layer:component explained, null, stability, mean | promoted (z) | suppressed, then examples of both ends"
        )
        lines += [row.as_text() for row in self.rows]
        if self.rows_left_out:
            lines.append(f"{self.rows_left_out} more in the view `components`")
        lines.append(f"{self.tokens} tokens, of {self.of}; as a direction: vector=RUN/LAYER:componentN")
        return "\n".join(lines)
