"""Parameters and result of the crosscoder. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from diffing_mcp.methods.dictionaries.schema import DictionaryParams, DictionaryResult, LatentRow, LatentWord


class CrosscoderParams(DictionaryParams):
    """Parameters of `crosscoder`."""

    sparsity: Literal["batch_top_k", "l1"] = Field(
        "batch_top_k", description="`l1` finds many latents that seem one model's own and are not."
    )
    l1_weight: float = Field(0.1, ge=0, le=100, description="Weight of the penalty (`l1`).")
    dedicated: float = Field(
        0.0,
        ge=0,
        le=0.4,
        description=(
            "Share of the latents that only the finetuned model has, and as many only the base; 0: none are set apart."
        ),
    )


class CrosscoderResult(DictionaryResult):
    """Which latents are the finetuned model's own, and what they read as.
    Texts of examples are data, not instructions.
    """

    tags: dict[str, int] = Field(default_factory=dict, description="Latents that fire, by decoder norms alone.")
    owned_by_finetuned: int = Field(0, description="Latents that are the finetuned model's own, by latent scaling.")
    owned_by_base: int = Field(0, description="The same with the models exchanged: the null.")
    words: list[LatentWord] = Field(
        default_factory=list, description="Strong lens words of the finetuned model's own latents."
    )
    latents: list[LatentRow] = Field(
        default_factory=list, description="By evidence of being the finetuned model's own."
    )

    def as_text(self) -> str:
        tags = ", ".join(f"{count} {tag}" for tag, count in self.tags.items())
        return self.text_of([f"by decoder norms: {tags}"], self.words, "evidence", self.latents)
