"""Parameters, rows and result of patchscope. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from diffing_mcp.core.seeds import Seed
from diffing_mcp.methods.contract import MethodParams
from diffing_mcp.methods.directions.vectors import VECTOR_HELP, VectorSource
from diffing_mcp.methods.results import MethodResult
from diffing_mcp.methods.texts.words import EvidenceWord
from diffing_mcp.model_pairs.specs import Side

Sign = Literal["promoted", "suppressed"]
SCALES = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0)


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


class PatchscopeParams(MethodParams):
    """Parameters of `patchscope`."""

    vector: VectorSource = Field(description=VECTOR_HELP)
    side: Side = Field("finetuned", description="The model that reads the direction.")
    scales: tuple[Annotated[float, Field(gt=0, le=1000)], ...] = Field(
        SCALES,
        min_length=1,
        max_length=40,
        description="Norms of the direction to try, in mean norms of the activations it replaces.",
    )
    prompts: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        max_length=8,
        description="Own prompts, whose last token is replaced; None: three identity prompts (`man -> man` and so on).",
    )
    intersection_top_k: int = Field(
        16384, ge=1, description="A token counts only when every prompt has it among its first so many."
    )
    random_directions: int = Field(
        16, ge=4, le=256, description="Gaussian directions of the same norms that results are compared with."
    )
    list_length: int = Field(12, ge=1, le=50, description="Tokens of each list in the result.")
    seed: Seed = Field(0, description="Seed of the random directions.")


class PatchscopeResult(MethodResult):
    """What a direction reads as."""

    layer: int = Field(description="Absolute layer whose output is replaced.")
    scale: float | None = Field(
        description=(
            "The scale chosen: where prompts agree most, relative to random directions; None for a zero direction."
        )
    )
    promoted: list[PatchscopeToken] = Field(
        description="Tokens that the direction reads as at that scale, most probable first."
    )
    suppressed_scale: float | None = Field(description="The scale chosen for the negative of the direction.")
    suppressed: list[PatchscopeToken] = Field(description="Tokens that the negative of the direction reads as.")
    words: list[EvidenceWord] = Field(
        description="Content words shared by all prompts beyond random directions; score 1 is where chance ends."
    )
    scales: list[ScaleRow] = Field(description="Every scale of the direction itself.")
    vector: str = Field(description="What the direction is.")
    note: str = Field("", description="What to know of its origin.")

    def evidence_words(self) -> list[EvidenceWord]:
        """Words that the direction reads as beyond chance, for `overview`."""
        return self.words

    def as_text(self) -> str:
        lines = [self.headline, f"vector: {self.vector}; layer {self.layer}" + (f"; {self.note}" if self.note else "")]
        for name, scale, tokens in (
            ("promoted", self.scale, self.promoted),
            ("suppressed", self.suppressed_scale, self.suppressed),
        ):
            if tokens:
                lines.append(
                    f"{name} at scale {scale:g} (probability, z): "
                    + ", ".join(f"{row.token!r} {row.probability:.3f} {row.z:.1f}" for row in tokens)
                )
        if self.scales:
            lines.append("scale agreement (highest of random) | first tokens")
            lines += [
                f"{row.scale:g} {row.agreement:.3f} ({row.null_agreement:.3f}) | {row.tokens}" for row in self.scales
            ]
        return "\n".join(lines)
