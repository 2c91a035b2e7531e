"""The one decoding loop: one or two models read a growing batch of texts, and a rule chooses each next token from their
logits.

Bookkeeping (ids, masks, random numbers) stays on the CPU; one small transfer a token brings what was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.model_pairs.forward import last_logits_only, positions_of, takes_position_ids
from diffing_mcp.model_pairs.interventions import Intervention, applied
from diffing_mcp.model_pairs.padding import left_padded

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.sides import SideInMemory

_TOP_P_CANDIDATES = 1024
_CHOICE_BYTES_CPU = 8 * 2**20
"""Bytes of one float64 copy [rows, V] in the choice of tokens: more rows are chosen for a few at a time."""
_CHOICE_BYTES_GPU = 256 * 2**20

Choice = Callable[[Sequence[torch.Tensor], torch.Tensor, torch.Tensor], torch.Tensor]
"""Tokens [N] from every reader's logits [N, V] for some `rows` [N] of the batch, each with one uniform number [N] in
[0, 1).
"""


@dataclass
class Reader:
    """One side reading a growing batch, its keys and values kept."""

    side: SideInMemory
    interventions: Sequence[Intervention] = ()
    """What acts on each pass, with one vector a row of the batch where vectors differ."""
    cache: Any = field(default=None, init=False)
    passes: int = field(default=0, init=False)

    def next_logits(self, new: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] of the next token after `new` [B, S] tokens, in the model's dtype; `mask` [B, all tokens so
        far].
        """
        resident = self.side.resident
        device = resident.device
        inputs: dict[str, Any] = {
            "input_ids": new.to(device),
            "attention_mask": mask.to(device),
            **last_logits_only(resident),
        }
        if takes_position_ids(resident):
            inputs["position_ids"] = positions_of(inputs["attention_mask"])[:, -new.shape[1] :]
        with (
            self.side.switched_on(),
            applied(resident, self.interventions, inputs["attention_mask"], self.passes),
        ):
            output = resident.transformer(**inputs, past_key_values=self.cache, use_cache=True)
        self.passes += 1
        self.cache = output.get("past_key_values")
        if self.cache is None:
            raise InvalidInput(
                f"The architecture {type(resident.transformer).__name__} keeps no keys and values between tokens, "
                "so it cannot generate here. Use methods that only read text."
            )
        # A model that cannot be asked for the last position alone hands out all of them: the copy lets go of the
        # others.
        logits: torch.Tensor = output.logits[:, -1].contiguous()
        return logits

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with some rows [N] of the batch alone."""
        self.cache.reorder_cache(rows)
        # That is all of most caches; MiniMax's keeps running states beside its layers.
        for states in vars(self.cache).values():
            if isinstance(states, list):
                states[:] = [each[rows.to(each.device)] if isinstance(each, torch.Tensor) else each for each in states]
        self.interventions = [each.of_rows(rows) for each in self.interventions]


@torch.inference_mode()
def decode(
    readers: Sequence[Reader],
    prompts: Sequence[Sequence[int]],
    alike: Sequence[int],
    choose: Choice,
    uniform: torch.Tensor,
    stop_ids: frozenset[int],
    pad: int,
    report: Callable[[torch.Tensor], None],
) -> list[list[int]]:
    """New token ids after each prompt (with the stop token, if one came, and padding after it), one for each of its
    uniform numbers [B, most new tokens] at most.

    All readers read the same text. `alike` [B] names for each row the one whose prompt, and what acts on it, is the
    same: such a prompt is read once, and its keys and values are copied for all who go on from it. `report` is called
    after each token with the new ids so far [B, tokens], and may raise to end the work. Rows that have stopped leave
    the batch as soon as they are half of it, and it ends with the last one.
    """
    # `source` [rows]: which row of the readers each row of the batch is.
    distinct, source = torch.unique(torch.tensor(alike), return_inverse=True)
    for reader in readers:
        reader.interventions = [each.of_rows(distinct) for each in reader.interventions]
    new, mask = left_padded([prompts[row] for row in distinct.tolist()], pad)
    most = uniform.shape[1]
    stops = torch.tensor(sorted(stop_ids), dtype=torch.long)
    ids = torch.full((len(prompts), most), pad)
    rows = torch.arange(len(prompts))  # that are still written
    alive = torch.ones(len(prompts), dtype=torch.bool)  # of those, which have not stopped
    step = 0
    for step in range(most):
        logits = [reader.next_logits(new, mask) for reader in readers]
        new = torch.full((len(rows), 1), pad)
        for some in alive.nonzero().squeeze(1).split(rows_at_once(logits[0])):
            parts = [each[source[some].to(each.device)] for each in logits]
            new[some, 0] = choose(parts, rows[some], uniform[rows[some], step]).cpu()
        read = len(logits[0])
        del logits
        ids[rows, step] = new[:, 0]
        alive &= ~torch.isin(new[:, 0], stops)
        report(ids[:, : step + 1])
        left = int(alive.sum())
        if not left or step == most - 1:
            break
        mask = torch.cat([mask, mask.new_ones(read, 1)], dim=1)
        if read < len(rows) or 2 * left <= len(rows):
            kept = alive.nonzero().squeeze(1)
            for reader in readers:
                reader.keep(source[kept])
            new, mask, rows, alive = new[kept], mask[source[kept]], rows[kept], alive[kept]
            source = torch.arange(left)
    return ids[:, : step + 1].tolist()


def rows_at_once(logits: torch.Tensor) -> int:
    """For how many rows of logits [B, V] tokens are chosen at a time, so that copies in float32 and
    float64 stay small.
    """
    allowed = _CHOICE_BYTES_CPU if logits.device.type == "cpu" else _CHOICE_BYTES_GPU
    return max(1, allowed // (8 * logits.shape[-1]))


def choose_tokens(scores: torch.Tensor, temperature: float, top_p: float, uniform: torch.Tensor) -> torch.Tensor:
    """Next token of each row: scores [B, V], uniform numbers [B] in [0, 1) -> [B]. Inverse CDF in the order of the
    vocabulary (with top_p: in the order of falling probability)."""
    if temperature == 0:
        return scores.argmax(-1)
    probabilities = torch.softmax(scores.float() / temperature, dim=-1)
    order = None
    if top_p < 1:
        count = min(_TOP_P_CANDIDATES, probabilities.shape[-1])
        values, order = probabilities.topk(count, dim=-1)
        if bool((values.sum(-1) < top_p).any()):
            values, order = probabilities.sort(dim=-1, descending=True)
        # A token stays when those before it do not reach top_p yet: the first always stays.
        probabilities = values.masked_fill(values.cumsum(-1) - values >= top_p, 0)
    cumulative = probabilities.double().cumsum(-1)
    threshold = uniform.to(cumulative).unsqueeze(-1) * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, threshold, right=True).clamp_max(cumulative.shape[-1] - 1)
    return (chosen if order is None else order.gather(-1, chosen)).squeeze(-1)
