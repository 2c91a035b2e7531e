"""The most probable continuations of many prompts by beam search: prompts share the passes, and each is read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from diffing_mcp.model_pairs.decoding import Reader
from diffing_mcp.model_pairs.generation import Row, batches_for
from diffing_mcp.model_pairs.padding import left_padded

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.resident import ResidentModel
    from diffing_mcp.model_pairs.sides import SideInMemory


@dataclass(frozen=True)
class Beam:
    """A continuation: its token ids, their log-probability in nats, and whether it ends in a stop token."""

    ids: tuple[int, ...] = ()
    log_prob: float = 0.0
    ended: bool = False


def continuations(
    side: SideInMemory,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    width: int,
    stops: frozenset[int],
    vocab_size: int,
    pad: int,
    progress: Callable[[int, int], None],
) -> tuple[torch.Tensor, list[list[Beam]]]:
    """What `beam_search` gives, of any number of prompts; `progress` is told how many of the batches are done.

    Raises:
        OutOfRoom: one prompt alone takes more memory than is free.
    """
    first = torch.empty(len(prompts), vocab_size)
    found: list[list[Beam]] = [[] for _ in prompts]
    parts = _parts_of(side.resident, prompts, tokens, width)
    for number, places in enumerate(parts):
        progress(number, len(parts))
        reader = Reader(side, [each.of_rows(torch.tensor(places)) for each in side.steering])
        some = [prompts[place] for place in places]
        first[places], beams = beam_search(reader, some, tokens, width, stops, vocab_size, pad)
        for place, each in zip(places, beams, strict=True):
            found[place] = each
    return first, found


def _parts_of(resident: ResidentModel, prompts: Sequence[Sequence[int]], tokens: int, width: int) -> list[list[int]]:
    """Places of prompts that are searched together, of similar length and as many as memory allows.

    Raises:
        OutOfRoom: one prompt alone takes more memory than is free.
    """
    batches = batches_for([resident], [Row(list(ids), place, 0) for place, ids in enumerate(prompts)], tokens)
    parts = []
    for batch in batches:
        size = max(1, len(batch) // width)
        parts += [[row.request for row in batch[at : at + size]] for at in range(0, len(batch), size)]
    return parts


@torch.inference_mode()
def beam_search(
    reader: Reader,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    width: int,
    stops: frozenset[int],
    vocab_size: int,
    pad: int,
) -> tuple[torch.Tensor, list[list[Beam]]]:
    """Log-probabilities of the token after each prompt [N, V] (float32, on the CPU), and the `width` most probable
    continuations of each that were found, of `tokens` tokens or up to a stop token, most probable first.
    """
    new, mask = left_padded(prompts, pad)
    beams = [[Beam()] for _ in prompts]
    first = torch.empty(0)
    for step in range(tokens):
        logs = reader.next_logits(new, mask)[:, :vocab_size].float().log_softmax(-1)
        if step == 0:
            first = logs.cpu()
        values, tops = (each.tolist() for each in logs.topk(min(width, vocab_size), dim=-1))
        # The rows of the batch are the live beams in order.
        row, grown = 0, []
        for each in beams:
            options = [(beam, -1) for beam in each if beam.ended]
            for beam in each:
                if not beam.ended:
                    options += [
                        (Beam((*beam.ids, token), beam.log_prob + value, token in stops), row)
                        for token, value in zip(tops[row], values[row], strict=True)
                    ]
                    row += 1
            grown.append(sorted(options, key=lambda option: -option[0].log_prob)[:width])
        beams = [[beam for beam, _ in options] for options in grown]
        live = [(beam.ids[-1], parent) for options in grown for beam, parent in options if not beam.ended]
        if not live or step == tokens - 1:
            break
        parents = torch.tensor([parent for _, parent in live])
        reader.keep(parents)
        new = torch.tensor([[token] for token, _ in live])
        mask = torch.cat([mask[parents], mask.new_ones(len(live), 1)], dim=1)
    return first, beams
