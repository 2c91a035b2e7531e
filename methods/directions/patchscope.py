"""Reading directions with identity prompts: pure functions over a pair, for this method and for others (PCA components,
latents, mining).

A prompt shows that things are repeated (`man -> man`) and ends in a token whose residual stream at one layer is
replaced by a direction; the model then names what stands there. Formulas: prior work's patchscope (Ghandeharioun et al.
2024; Minder et al. 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.model_pairs.interventions import Intervention
from diffing_mcp.model_pairs.padding import padded

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import Side

_ROWS = 64
IDENTITY_PROMPTS = (
    "man -> man\n1135 -> 1135\nhello -> hello\n?",
    "bear -> bear\n42 -> 42\nblue -> blue\n?",
    "921 -> 921\ntarget -> target\nanna -> anna\n?",
)
"""Three of one shape with words and figures that have nothing in common, so that what they agree on comes from the
direction.
"""


@dataclass(frozen=True)
class Prompts:
    """Identity prompts as token ids, and what the model makes of them unchanged.

    Attributes:
        ids: token ids of each prompt.
        norm: mean L2 norm of the replaced activations (last token of each prompt, after the layer): scale 1.
    """

    ids: list[list[int]]
    norm: float


def prepare(pair: LoadedPair, side: Side, layer: int, prompts: Sequence[str] = IDENTITY_PROMPTS) -> Prompts:
    """Tokenise the prompts and measure the activations that will be replaced.

    Raises:
        InvalidInput: an empty prompt, or one longer than the context.
    """
    ids = [list(pair.tokenizer(prompt)["input_ids"]) for prompt in prompts]
    if any(not 1 < len(each) <= pair.context_length for each in ids):
        raise InvalidInput(f"Each identity prompt has 2 to {pair.context_length} tokens; the last one is replaced.")
    input_ids, mask = padded(ids, pair.tokenizer.pad_token_id)
    hidden = pair.forward(side, input_ids, mask, layers=[layer], logits=False).hidden[layer].to("cpu", torch.float64)
    last = torch.stack([hidden[row, len(each) - 1] for row, each in enumerate(ids)])
    return Prompts(ids, float(last.norm(dim=1).mean()))


def patched_log_probs(
    pair: LoadedPair, side: Side, layer: int, prompts: Prompts, vectors: Tensor, progress: Progress = silent
) -> Tensor:
    """Next-token log-probabilities [N, P, V] float32 on the CPU: row n replaces the last token of prompt p by
    `vectors[n]` [N, d_model].

    Each prompt's beginning is read once and shared by all rows. N x P x V is kept, so give few vectors at once.
    """
    result = torch.empty(len(vectors), len(prompts.ids), pair.vocab_size)
    for place, ids in enumerate(prompts.ids):
        for start in range(0, len(vectors), _ROWS):
            progress(0, None, "reading vectors")
            rows = vectors[start : start + _ROWS]
            logits = pair.last_token_logits(side, ids, len(rows), [Intervention(layer, rows, mode="replace")])
            result[start : start + _ROWS, place] = torch.log_softmax(logits, dim=-1).cpu()
    return result


def averaged(log_probs: Tensor, intersection_top_k: int | None = None) -> Tensor:
    """Mean over prompts of the probabilities, [N, P, V] -> [N, V] float64; with a k, 0 for a token that some prompt has
    not among its k first.
    """
    probabilities = log_probs.to(torch.float64).exp().mean(dim=1)
    if intersection_top_k is not None and intersection_top_k < log_probs.shape[-1]:
        least = log_probs.topk(intersection_top_k, dim=-1).values[..., -1:]
        probabilities = probabilities * (log_probs >= least).all(dim=1)
    return probabilities
