"""What decides a trained dictionary besides its data, and what it costs before it starts. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.core.seeds import Seed
from diffing_mcp.core.settings import settings
from diffing_mcp.methods.contract import CostEstimate, PairSize
from diffing_mcp.methods.dictionaries.schema import DictionaryParams
from diffing_mcp.preprocessing.text_sources import text_tokens

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
_PRODUCTS = 5
"""Matrix products a step: two forward, three backward."""
_DEPTH = 0.6
"""Share of a forward pass up to a middle layer."""


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
    seed: Seed = 0

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


def dictionary_bytes(latents: int, width: int, sources: int) -> int:
    """Of the weights in float32: encoder, decoder and their biases."""
    return 4 * (2 * latents * sources * width + latents + sources * width)


def training_bytes(latents: int, width: int, sources: int) -> int:
    """Disk that a training takes at most: a checkpoint (weights and Adam's two moments), and the next one beside it
    before it takes its place.
    """
    return 2 * 3 * dictionary_bytes(latents, width, sources)


def estimate(pair: PairSize, params: DictionaryParams, sources: int) -> CostEstimate:
    """Collection up to the layer (none when the activations are stored), then training and the passes after it, scaled
    from the forward speed: a token of a forward pass takes about twice as many operations as the model has parameters,
    a token of a step twice as many as the products have weights.

    Raises:
        UnknownName, InvalidInput: no such stored collection.
    """
    read, tokens = _tokens(params)
    width = pair.d_model or 1024
    layers = pair.num_layers or 24
    latents = params.latents(width)
    parameters = layers * 12 * width**2
    step_tokens = 0 if params.dictionary else params.steps * params.batch_rows
    in_tokens = (_PRODUCTS * step_tokens + 6 * tokens) * latents * sources * width / parameters
    passes = 2 * -(-read // settings().batch_tokens)
    stored = 4 * latents * width + (0 if params.dictionary else training_bytes(latents, width, sources))
    return pair.cost(2 * read, passes, other_work=in_tokens - 2 * (1 - _DEPTH) * read, bytes=stored)


def _tokens(params: DictionaryParams) -> tuple[int, int]:
    """Tokens that the models read, and tokens that the dictionary does, at most."""
    read, tokens = text_tokens(params)
    return min(read, params.max_activation_tokens or read), min(tokens, params.max_activation_tokens or tokens)
