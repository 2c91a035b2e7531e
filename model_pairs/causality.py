"""Does a model predict the next token without seeing it? Asked of the model itself: configurations say it in many ways
(`use_bidirectional_attention`, `is_causal`), and some architectures read a whole prompt at once whatever theirs says.
"""

from __future__ import annotations

from typing import Any

import torch

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.model_pairs.finite import is_finite

_TOKENS, _SAME = 8, 4
_LARGEST_CHANGE = 0.1
"""Mean change of the logits of equal beginnings, in standard deviations of the logits, that rounding explains: in 16
bits another token in the batch may send one to another expert.
"""


def check_causal(transformer: Any) -> None:
    """Raise InvalidInput for a model whose logits at a token depend on the tokens after it: what it says of the next
    token is no prediction, and depends on the padding of a batch.
    """
    rows = int(transformer.get_input_embeddings().weight.shape[0])
    ids = torch.randint(0, rows, (2, _TOKENS), generator=torch.Generator().manual_seed(0)).to(transformer.device)
    ids[1, :_SAME] = ids[0, :_SAME]
    with torch.inference_mode():
        logits = transformer(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, :_SAME]
    if not is_finite(logits):
        return  # the first pass says of which side and of which weights
    first, second = logits.float()
    if float((first - second).abs().mean()) > _LARGEST_CHANGE * float(first.std()):
        raise InvalidInput(
            f"In this {type(transformer).__name__} tokens see those after them (it is an encoder, or reads a whole "
            "prompt at once), so what it says of the next token is no prediction. Name a causal language model (a "
            "decoder that predicts the next token)."
        )
