"""Contrastive decoding of the two sides: each token is drawn from log p_ft + alpha (log p_ft - log p_base), both models reading the same text.

Also called logit amplification of the difference (arXiv 2605.25902). alpha 0 is the finetuned model and alpha -1 the base; above 0 what the finetune
made more probable is amplified, below -1 what it made less probable. Only tokens that the model at the start of that direction finds plausible may be
drawn (the adaptive plausibility constraint of contrastive decoding, arXiv 2210.15097): without it tokens that both models find absurd win.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from model_pairs.adapters import activate
from model_pairs.forward import positions_of, takes_position_ids
from model_pairs.forward_count import ForwardCount
from model_pairs.generation import (
    Completion,
    GenerationRequest,
    Row,
    Sampling,
    batch_limits,
    batches_of,
    choose_tokens,
    completion_of,
    left_padded,
    new_tokens,
    rows_of,
    uniform_numbers,
)
from model_pairs.interventions import Intervention, applied
from organisms.errors import InvalidInput
from organisms.progress import Progress, silent

if TYPE_CHECKING:
    from model_pairs.loading import ResidentModel


class ContrastiveCompletion(Completion):
    """A completion, with the sums over its tokens (the stop token left out) of their log-probability in nats under both models."""

    base_log_prob: float
    finetuned_log_prob: float


@dataclass
class Reader:
    """One side reading a growing batch, its keys and values kept. The caller holds the lock of its model."""

    resident: ResidentModel
    adapter: str | None
    steering: tuple[Intervention, ...]
    cache: Any = None

    def log_probs(self, new: torch.Tensor, mask: torch.Tensor, vocab_size: int) -> torch.Tensor:
        """Float32 log-probabilities [B, vocab_size] of the next token after `new` [B, S] tokens; `mask` [B, all tokens so far]."""
        activate(self.resident, self.adapter)
        inputs: dict[str, Any] = {"input_ids": new.to(self.resident.device), "attention_mask": mask.to(self.resident.device)}
        if takes_position_ids(self.resident):
            inputs["position_ids"] = positions_of(inputs["attention_mask"])[:, -new.shape[1] :]
        with applied(self.resident, self.steering, inputs["attention_mask"]) if self.steering else nullcontext():
            output = self.resident.transformer(**inputs, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = output.past_key_values
        return torch.log_softmax(output.logits[:, -1, :vocab_size].float(), dim=-1)


@dataclass(frozen=True)
class _ContrastRow(Row):
    alpha: int


def contrast(base: torch.Tensor, finetuned: torch.Tensor, alphas: torch.Tensor, plausibility: float) -> torch.Tensor:
    """Scores [B, V] from log-probabilities [B, V] of both models and one alpha [B] a row; -inf where the anchor, the nearer of the two models, gives a
    token less than `plausibility` of its highest probability (0: no constraint)."""
    scores = finetuned + alphas[:, None] * (finetuned - base)
    if plausibility > 0:
        anchor = torch.where((alphas >= -0.5)[:, None], finetuned, base)
        scores = scores.masked_fill(anchor < anchor.amax(-1, keepdim=True) + math.log(plausibility), float("-inf"))
    # At the models themselves the arithmetic is left out: equal probabilities draw equal tokens.
    return torch.where((alphas == -1)[:, None], base, torch.where((alphas == 0)[:, None], finetuned, scores))


def generate_contrastive(
    readers: Sequence[tuple[ResidentModel, str | None, tuple[Intervention, ...]]],
    tokenizer: Any,
    vocab_size: int,
    context_length: int,
    requests: Sequence[GenerationRequest],
    alphas: Sequence[float],
    sampling: Sampling,
    plausibility: float,
    progress: Progress = silent,
    thinking_switch: bool = False,
    count: ForwardCount | None = None,
) -> list[list[list[ContrastiveCompletion]]]:
    """`sampling.n` completions of each request for each alpha: [alpha][request][sample]. All alphas draw the same random numbers.

    `readers` are model, adapter and steering of base and finetuned; the caller holds the locks of both models. Tokens are drawn from the vocabulary
    that both models have. `count` counts what was run.

    Raises:
        InvalidInput: a prompt longer than the context, an empty one, a conversation that cannot be rendered, or alphas that are not finite numbers.
        Cancelled: between two tokens, when progress says so.
    """
    if not alphas or not all(math.isfinite(alpha) for alpha in alphas):
        raise InvalidInput(f"alphas must be at least one finite number, not {list(alphas)}.")
    plain = rows_of(tokenizer, requests, sampling, context_length, thinking_switch)
    rows = [_ContrastRow(row.prompt, row.request, row.sample, alpha) for alpha in range(len(alphas)) for row in plain]
    base = readers[0][0]
    stops = base.stop_ids | readers[1][0].stop_ids
    found: list[list[dict[int, ContrastiveCompletion]]] = [[{} for _ in requests] for _ in alphas]
    total, done = float(len(rows) * sampling.max_new_tokens), 0.0
    for batch in batches_of(rows, sampling.max_new_tokens, *batch_limits(base.device)):
        sides = [Reader(*reader) for reader in readers]
        of_rows = torch.tensor([alphas[row.alpha] for row in batch if isinstance(row, _ContrastRow)], dtype=torch.float32, device=base.device)
        ids, sums = _decode(sides, batch, of_rows, tokenizer.pad_token_id, stops, vocab_size, sampling, plausibility, (progress, done, total))
        if count is not None:
            count.add_generation([len(row.prompt) for row in batch], [new_tokens(stops, new) for new in ids], sides=len(sides))
        for row, new, log_probs in zip(batch, ids, sums, strict=True):
            if isinstance(row, _ContrastRow):
                completion = completion_of(stops, tokenizer, row, new)
                found[row.alpha][row.request][row.sample] = ContrastiveCompletion(
                    **completion.model_dump(), base_log_prob=log_probs[0], finetuned_log_prob=log_probs[1]
                )
        done += len(batch) * sampling.max_new_tokens
        progress(done, total, "generating")
    return [[[samples[index] for index in range(sampling.n)] for samples in of_alpha] for of_alpha in found]


@torch.inference_mode()
def _decode(
    sides: Sequence[Reader],
    batch: Sequence[Row],
    alphas: torch.Tensor,
    pad: int,
    stop_ids: frozenset[int],
    vocab_size: int,
    sampling: Sampling,
    plausibility: float,
    report: tuple[Progress, float, float],
) -> tuple[list[list[int]], list[tuple[float, float]]]:
    """New token ids of each row (with the stop token, if one came, and padding after it), and its log-probability under base and finetuned."""
    device = sides[0].resident.device
    new, mask = left_padded(batch, pad, device)
    uniform = uniform_numbers(batch, sampling, device)
    stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=device)
    alive = torch.ones(len(batch), dtype=torch.bool, device=device)
    sums = torch.zeros(2, len(batch), dtype=torch.float64, device=device)
    tokens = []
    progress, done, total = report
    for step in range(sampling.max_new_tokens):
        base, finetuned = (side.log_probs(new, mask, vocab_size).to(device) for side in sides)
        chosen = choose_tokens(contrast(base, finetuned, alphas, plausibility), sampling.temperature, sampling.top_p, uniform[:, step]).to(device)
        chosen = chosen.masked_fill(~alive, pad)
        alive = alive & ~torch.isin(chosen, stops)
        for place, log_probs in enumerate((base, finetuned)):
            sums[place] += log_probs.gather(1, chosen[:, None]).squeeze(1).double() * alive
        tokens.append(chosen)
        progress(done + (step + 1) * len(batch), total, "generating")
        if not bool(alive.any()):
            break
        new = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(batch), 1)], dim=1)
    return torch.stack(tokens, dim=1).tolist(), [(float(low), float(high)) for low, high in sums.T.tolist()]
