"""What a dictionary costs, before it starts. Torch-free."""

from __future__ import annotations

from methods.contract import CostEstimate, PairSize
from methods.dictionaries.params import DictionaryParams
from organisms.settings import settings

_PRODUCTS = 5
"""Matrix products a step: two forward, three backward."""


def estimate(pair: PairSize, params: DictionaryParams, sources: int) -> CostEstimate:
    """Collection up to the layer, then training and the passes after it, scaled from the forward speed: a token of a forward pass takes about twice as many
    operations as the model has parameters, a token of a step twice as many as the products have weights."""
    tokens = params.max_samples * params.max_tokens
    width = pair.d_model or 1024
    layers = pair.num_layers or 24
    latents = params.expansion * width
    parameters = layers * 12 * width**2
    step_tokens = 0 if params.dictionary else params.steps * params.batch_rows
    in_tokens = (_PRODUCTS * step_tokens + 6 * tokens) * latents * sources * width / parameters
    seconds = (tokens * 2 * 0.6 + in_tokens) / pair.tokens_per_second if pair.tokens_per_second else None
    passes = 2 * -(-tokens // settings().batch_tokens)
    return CostEstimate(tokens=tokens, forward_passes=passes, seconds=seconds, bytes=int(8 * latents * sources * width))
