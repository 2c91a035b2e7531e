"""What a dictionary costs, before it starts. Torch-free."""

from __future__ import annotations

from diffing_mcp.core.settings import settings
from diffing_mcp.methods.contract import CostEstimate, PairSize
from diffing_mcp.methods.dictionaries.params import DictionaryParams
from diffing_mcp.preprocessing.text_sources import text_tokens

_PRODUCTS = 5
"""Matrix products a step: two forward, three backward."""
_DEPTH = 0.6
"""Share of a forward pass up to a middle layer."""


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
