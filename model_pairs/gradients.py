"""Which way each token before an answer would have to move to make the answer more probable: gradients by the input
embeddings. Imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.model_pairs.finite import check_values
from diffing_mcp.model_pairs.forward import check_batch, positions_of, takes_position_ids
from diffing_mcp.model_pairs.interventions import Intervention, applied
from diffing_mcp.model_pairs.padding import padded

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.forward_count import ForwardCount
    from diffing_mcp.model_pairs.resident import ResidentModel

_TOKENS_AT_ONCE = 512
"""Tokens of a batch: everything that the pass computes is kept for the way back."""

PromptAndAnswer = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of an answer to it, neither of them empty."""


def answer_gradients(
    resident: ResidentModel,
    rows: Sequence[PromptAndAnswer],
    interventions: Sequence[Intervention],
    vocabulary: int,
    count: ForwardCount,
) -> list[torch.Tensor]:
    """Gradient of the log-probability of each answer (nats, summed over its tokens, over the first `vocabulary` ids, as
    answers are scored) by the embeddings of its prompt: float32 [tokens of the prompt, d_model], on the CPU. The caller
    holds `resident.lock` and has switched the adapter.

    A gradient times the difference of two embeddings says, to first order, what it would give to have the one token in
    place of the other (HotFlip, Ebrahimi et al. 2018).

    Raises:
        InvalidInput: an empty prompt or answer, or a row longer than the context.
        NotFinite: NaN or infinite numbers in the logits or in a gradient.
    """
    if any(not prompt or not answer for prompt, answer in rows):
        raise InvalidInput("A gradient needs a prompt and an answer of at least one token each.")
    found: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    lengths = [len(prompt) + len(answer) for prompt, answer in rows]
    order = sorted(range(len(rows)), key=lambda index: -lengths[index])
    while order:
        size = max(1, _TOKENS_AT_ONCE // lengths[order[0]])
        batch, order = order[:size], order[size:]
        gradients = _of_batch(resident, [rows[at] for at in batch], interventions, vocabulary)
        for index, gradient in zip(batch, gradients, strict=True):
            found[index] = gradient
        count.add(2, 3 * sum(lengths[index] for index in batch))  # the way back takes as long as two passes
    return found


def _of_batch(
    resident: ResidentModel, rows: Sequence[PromptAndAnswer], interventions: Sequence[Intervention], vocabulary: int
) -> list[torch.Tensor]:
    ids, mask = padded([[*prompt, *answer] for prompt, answer in rows], None)
    check_batch(resident, ids, mask)
    ids, mask = ids.to(resident.device), mask.to(resident.device)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if takes_position_ids(resident):
        inputs["position_ids"] = positions_of(mask)
    with torch.enable_grad(), applied(resident, interventions, mask), _embedded(resident) as embedded:
        logits = resident.transformer(**inputs, use_cache=False).logits[..., :vocabulary]
        total = torch.stack(
            [
                _log_prob(logits[row, len(prompt) - 1 : len(prompt) + len(answer) - 1], answer)
                for row, (prompt, answer) in enumerate(rows)
            ]
        ).sum()
        [gradient] = torch.autograd.grad(total, embedded)
    gradient = gradient.detach().float().cpu()
    check_values(gradient, "a gradient by the input embeddings")
    return [gradient[row, : len(prompt)] for row, (prompt, _) in enumerate(rows)]


def _log_prob(logits: torch.Tensor, answer: Sequence[int]) -> torch.Tensor:
    chosen = torch.tensor(list(answer), device=logits.device)
    return logits.float().log_softmax(-1).gather(1, chosen[:, None]).sum()


@contextmanager
def _embedded(resident: ResidentModel) -> Iterator[list[torch.Tensor]]:
    """What the input embedding gives, as adapters make it, as a leaf of the graph: filled by the pass inside."""
    held: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        held.append(output.detach().requires_grad_(True))
        return held[-1]

    handle = resident.transformer.get_input_embeddings().register_forward_hook(keep)
    try:
        yield held
    finally:
        handle.remove()
