"""Contrastive decoding of the two sides: each token is drawn from log p_ft + alpha (log p_ft - log p_base), both models
reading the same text.

Also called logit amplification of the difference (arXiv 2605.25902). alpha 0 is the finetuned model and alpha -1 the
base; above 0 what the finetune made more probable is amplified, below -1 what it made less probable. Only tokens that
the model at the start of that direction finds plausible may be drawn (the adaptive plausibility constraint of
contrastive decoding, arXiv 2210.15097): without it tokens that both models find absurd win.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.model_pairs.decoding import Reader, choose_tokens, decode
from diffing_mcp.model_pairs.forward_count import ForwardCount
from diffing_mcp.model_pairs.generation import (
    Completion,
    GenerationRequest,
    Row,
    Sampling,
    batches_for,
    completion_of,
    first_alike,
    new_tokens,
    reporting,
    rows_of,
    uniform_numbers,
)

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.sides import SideInMemory


class ContrastiveCompletion(Completion):
    """A completion, with the sums over its tokens (the stop token left out) of their log-probability in nats under both
    models.
    """

    base_log_prob: float
    finetuned_log_prob: float


@dataclass(frozen=True)
class _ContrastRow(Row):
    alpha: int


def contrast(base: torch.Tensor, finetuned: torch.Tensor, alphas: torch.Tensor, plausibility: float) -> torch.Tensor:
    """Scores [B, V] from log-probabilities [B, V] of both models and one alpha [B] a row; -inf where the anchor, the
    nearer of the two models, gives a token less than `plausibility` of its highest probability (0: no constraint)."""
    scores = finetuned + alphas[:, None] * (finetuned - base)
    if plausibility > 0:
        anchor = torch.where((alphas >= -0.5)[:, None], finetuned, base)
        scores = scores.masked_fill(anchor < anchor.amax(-1, keepdim=True) + math.log(plausibility), float("-inf"))
    # At the models themselves the arithmetic is left out: equal probabilities draw equal tokens.
    return torch.where((alphas == -1)[:, None], base, torch.where((alphas == 0)[:, None], finetuned, scores))


def generate_contrastive(
    sides: Sequence[SideInMemory],
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
    stop_ids: frozenset[int] | None = None,
) -> list[list[list[ContrastiveCompletion]]]:
    """`sampling.n` completions of each request for each alpha: [alpha][request][sample]. All alphas draw the same
    random numbers.

    `sides` are base and finetuned. Tokens are drawn from the vocabulary that both models have. `count` counts what was
    run; `stop_ids` (None: those of both models) end a completion.

    Raises:
        InvalidInput: a prompt longer than the context, an empty one, a conversation that cannot be rendered, or alphas
            that are not finite numbers.
        OutOfRoom: one completion alone takes more memory than is free.
        Cancelled: between two tokens, when progress says so.
    """
    if not alphas or not all(math.isfinite(alpha) for alpha in alphas):
        raise InvalidInput(f"alphas must be at least one finite number, not {list(alphas)}.")
    plain = rows_of(tokenizer, requests, sampling, context_length, thinking_switch)
    rows = [_ContrastRow(row.prompt, row.request, row.sample, alpha) for alpha in range(len(alphas)) for row in plain]
    stops = sides[0].resident.stop_ids | sides[1].resident.stop_ids if stop_ids is None else stop_ids
    found: list[list[dict[int, ContrastiveCompletion]]] = [[{} for _ in requests] for _ in alphas]
    total, done = float(len(rows) * sampling.max_new_tokens), 0.0
    for batch in batches_for([side.resident for side in sides], rows, sampling.max_new_tokens):
        readers = [Reader(side, side.steering) for side in sides]
        of_rows = torch.tensor(
            [alphas[row.alpha] for row in batch if isinstance(row, _ContrastRow)], dtype=torch.float32
        )
        rule = _Contrast(of_rows, vocab_size, plausibility, sampling, stops)
        report = reporting(progress, done, total, len(batch))
        alike = first_alike(batch)
        ids = decode(
            readers,
            [row.prompt for row in batch],
            alike,
            rule,
            uniform_numbers(batch, sampling),
            stops,
            tokenizer.pad_token_id,
            report,
        )
        sums: list[list[float]] = rule.sums.T.tolist()
        if count is not None:
            count.add_generation(
                [len(batch[place].prompt) for place in set(alike)],
                [new_tokens(stops, new) for new in ids],
                sides=len(sides),
            )
        for row, new, log_probs in zip(batch, ids, sums, strict=True):
            if isinstance(row, _ContrastRow):
                completion = completion_of(stops, tokenizer, row, new)
                found[row.alpha][row.request][row.sample] = ContrastiveCompletion(
                    **completion.model_dump(), base_log_prob=log_probs[0], finetuned_log_prob=log_probs[1]
                )
        done += len(batch) * sampling.max_new_tokens
        progress(done, total, "generating")
    return [[[samples[index] for index in range(sampling.n)] for samples in of_alpha] for of_alpha in found]


class _Contrast:
    """How tokens are chosen in one batch, and the sums of their log-probabilities, stop tokens left out: `sums` [2, B]
    float64, base first.
    """

    def __init__(
        self, alphas: torch.Tensor, vocab_size: int, plausibility: float, sampling: Sampling, stop_ids: frozenset[int]
    ) -> None:
        self.alphas, self.vocab_size, self.plausibility, self.sampling = alphas, vocab_size, plausibility, sampling
        self.stops = torch.tensor(sorted(stop_ids), dtype=torch.long)
        self.sums = torch.zeros(2, len(alphas), dtype=torch.float64)

    def __call__(self, logits: Sequence[torch.Tensor], rows: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        device = logits[0].device
        base, finetuned = (torch.log_softmax(each[:, : self.vocab_size].to(device).float(), dim=-1) for each in logits)
        scores = contrast(base, finetuned, self.alphas[rows].to(device), self.plausibility)
        chosen = choose_tokens(scores, self.sampling.temperature, self.sampling.top_p, uniform)
        counts = ~torch.isin(chosen.cpu(), self.stops)
        for place, log_probs in enumerate((base, finetuned)):
            self.sums[place, rows] += log_probs.gather(1, chosen[:, None]).squeeze(1).double().cpu() * counts
        return chosen
