"""What decides a trained dictionary besides its data. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["sae", "batch_top_k", "l1"]

AUXILIARY = 1 / 32
"""Weight of the loss that lets dead latents explain what is left (Gao et al., arXiv 2406.04093)."""
DEAD_TOKENS = 10_000_000
"""Tokens without firing after which a latent counts as dead, in long trainings; short ones take `DEAD_SHARE` of their
tokens.
"""
DEAD_SHARE = 0.01
WARMUP_STEPS = 1000
WARMUP_SHARE = 0.05
"""The learning rate rises over this share of the steps, `WARMUP_STEPS` at most."""
DECAY_SHARE = 0.2
"""It falls to zero over the last of the steps."""


class TrainingRecipe(BaseModel):
    """One training run of a dictionary."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind = Field(description="`sae`: one source, BatchTopK; `batch_top_k` and `l1`: crosscoders.")
    latents: int = Field(ge=2)
    k: int = Field(ge=1, description="Mean active latents a token (BatchTopK).")
    l1_weight: float = Field(0.0, ge=0, description="Weight of the sparsity penalty (l1).")
    dedicated: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="Share of the latents that only the base writes and reads, and as many for the finetuned.",
    )
    steps: int = Field(ge=1)
    batch_rows: int = Field(ge=2, description="Tokens a step.")
    learning_rate: float = Field(gt=0)
    patience: int | None = Field(
        None, ge=1, description="Validations without a better held-out loss before the training stops; None: never."
    )
    validate_every: int = Field(100, ge=1, description="Steps.")
    seed: int = Field(0, ge=0)

    @property
    def dead_after(self) -> int:
        """Tokens without firing after which a latent is dead."""
        return min(DEAD_TOKENS, max(self.batch_rows, int(DEAD_SHARE * self.steps * self.batch_rows)))

    @property
    def threshold_memory(self) -> float:
        """Decay of the running mean of the smallest activation kept, over the last of the steps: 0.999, less in short
        trainings.
        """
        return min(0.999, max(0.9, 1 - 10 / self.steps))

    @property
    def threshold_start(self) -> int:
        """Step at which the running mean starts: 1000, in short trainings half of them, because early batches keep far
        smaller activations.
        """
        return min(1000, self.steps // 2)

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, constant, then linear to zero."""
        warm = min(WARMUP_STEPS, max(1, round(WARMUP_SHARE * self.steps)))
        decay = max(1, round(DECAY_SHARE * self.steps))
        return self.learning_rate * min(1.0, (step + 1) / warm, (self.steps - step) / decay)


class CurvePoint(BaseModel):
    """The state of a training at a step."""

    step: int
    loss: float = Field(description="Mean training loss since the point before.")
    variance_explained: float | None = Field(
        description="On held-out tokens, with the inference threshold; None before there is one."
    )
