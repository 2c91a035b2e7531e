"""The most probable continuations of many beginnings under both models. Imports torch: only jobs and notebooks import
this module.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.progress import Progress
from diffing_mcp.methods.texts.words import vocabulary
from diffing_mcp.model_pairs.chat import ChatMessage
from diffing_mcp.model_pairs.generation import GenerationRequest, new_text, prompt_ids
from diffing_mcp.model_pairs.room import logit_tokens
from diffing_mcp.model_pairs.specs import SIDES, Side
from diffing_mcp.queries.beyond_tokens import continuation_log_probs
from diffing_mcp.queries.slot_schemas import Slot, SlotContinuation, SlotsQuery, SlotsResult

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.pair import LoadedPair

WIDTH = 4
"""Phrases of each side that are followed at a time (beam search)."""
LEAST_SHOWN = 0.003
"""Continuations that neither model expects so much are left out: their ratios are noise of rare tokens."""
LEAST_RATIO = math.log(1.25)
"""From here on a continuation counts as raised or lowered."""


def complete(pair: LoadedPair, query: SlotsQuery, progress: Progress) -> SlotsResult:
    """Next words and phrases of every beginning with their probabilities under both sides.

    Raises:
        InvalidInput: a beginning that does not fit into the context, or a prompt for a model without a chat template.
    """
    prefixes = [_prefix(pair, query, beginning) for beginning in query.beginnings]
    longest = max(map(len, prefixes))
    if longest + query.tokens > pair.context_length:
        raise InvalidInput(
            f"A beginning has {longest} tokens with its prompt; with {query.tokens} more it does not fit into a context "
            f"of {pair.context_length}."
        )
    nexts: dict[Side, torch.Tensor] = {}
    phrases: list[set[tuple[int, ...]]] = [set() for _ in prefixes]
    for place, side in enumerate(pair.resident_first()):
        with pair.side_loaded(side):
            progress(3 * place, 7, f"{side}: next words")
            nexts[side] = _next_log_probs(pair, side, prefixes).exp()
            stops = pair.stop_ids(side)
            for found, beams in zip(
                phrases, _beams(pair, side, prefixes, query.tokens, stops, progress, 3 * place), strict=True
            ):
                found |= {beam.ids for beam in beams}
    progress(6, 7, "scoring phrases")
    scored = _scored(pair, prefixes, phrases)
    words = vocabulary(pair.tokenizer, pair.vocab_size)
    merged = {side: torch.from_numpy(words.merge(nexts[side].double().numpy())) for side in SIDES}
    slots = []
    for place, beginning in enumerate(query.beginnings):
        base, finetuned = merged["base"][place], merged["finetuned"][place]
        likely = torch.maximum(base, finetuned).topk(min(8 * query.top, base.numel())).indices.tolist()
        singles = [_continuation(words.words[index], float(base[index]), float(finetuned[index])) for index in likely]
        moved = float((nexts["finetuned"][place] - nexts["base"][place]).abs().sum() / 2)
        slots.append(_slot(beginning, moved, singles, scored[place], query.top))
    return SlotsResult(slots=slots)


def _prefix(pair: LoadedPair, query: SlotsQuery, beginning: str) -> list[int]:
    """Token ids that the models go on from. A space at the end would be a token of its own, after which no word that
    begins with its space can come.
    """
    text = beginning.rstrip(" ")
    switch = pair.spec.base.files.thinking_switch
    if query.prompt is None:
        return prompt_ids(pair.tokenizer, GenerationRequest(text=text), False, switch)
    turn = ChatMessage(role="user", content=query.prompt)
    return prompt_ids(pair.tokenizer, GenerationRequest(messages=(turn,), prefill=text), False, switch)


def _next_log_probs(pair: LoadedPair, side: Side, texts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Float32 log-probabilities of the token after each text [N, V], on the CPU; texts of similar length share a pass.
    """
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    result = torch.empty(len(texts), pair.vocab_size)
    pad, start = pair.tokenizer.pad_token_id or 0, 0
    allowed = logit_tokens(pair.vocab_size, 4)
    while start < len(order):
        rows = 1
        while start + rows < len(order) and (rows + 1) * len(texts[order[start + rows]]) <= allowed:
            rows += 1
        some = order[start : start + rows]
        width = len(texts[some[-1]])
        ids = torch.tensor([[pad] * (width - len(texts[place])) + list(texts[place]) for place in some])
        mask = torch.tensor([[0] * (width - len(texts[place])) + [1] * len(texts[place]) for place in some])
        with torch.inference_mode():
            logits = cast(torch.Tensor, pair.forward(side, ids, mask).logits)[:, -1]
            result[some] = logits.float().log_softmax(-1).cpu()
        start += rows
    return result


@dataclass(frozen=True)
class _Beam:
    ids: tuple[int, ...]
    log_prob: float
    ended: bool = False


def _beams(
    pair: LoadedPair,
    side: Side,
    prefixes: Sequence[Sequence[int]],
    tokens: int,
    stops: frozenset[int],
    progress: Progress,
    done: int,
) -> list[list[_Beam]]:
    """The `WIDTH` most probable phrases of each beginning found by beam search: `tokens` tokens, fewer where the model
    ends its turn. All beginnings share the passes.
    """
    beams = [[_Beam((), 0.0)] for _ in prefixes]
    for step in range(tokens):
        progress(done + 1 + 2 * step / tokens, 7, f"{side}: phrases")
        live = [(place, beam) for place, row in enumerate(beams) for beam in row if not beam.ended]
        if not live:
            break
        logs = _next_log_probs(pair, side, [[*prefixes[place], *beam.ids] for place, beam in live])
        values, tops = logs.topk(min(WIDTH, logs.shape[-1]), dim=-1)
        grown = [[beam for beam in row if beam.ended] for row in beams]
        for (place, beam), chosen, log_probs in zip(live, tops.tolist(), values.tolist(), strict=True):
            grown[place] += [
                _Beam((*beam.ids, token), beam.log_prob + log_prob, token in stops)
                for token, log_prob in zip(chosen, log_probs, strict=True)
            ]
        beams = [sorted(row, key=lambda beam: -beam.log_prob)[:WIDTH] for row in grown]
    return beams


def _scored(
    pair: LoadedPair, prefixes: Sequence[Sequence[int]], phrases: Sequence[set[tuple[int, ...]]]
) -> list[list[SlotContinuation]]:
    """Every phrase of both sides under both, with the text that it adds."""
    rows = [(place, ids) for place, found in enumerate(phrases) for ids in sorted(found)]
    totals = continuation_log_probs(pair, [(prefixes[place], ids) for place, ids in rows])
    result: list[list[SlotContinuation]] = [[] for _ in prefixes]
    both = zip(rows, totals["base"].exp().tolist(), totals["finetuned"].exp().tolist(), strict=True)
    for (place, ids), base, finetuned in both:
        text = new_text(pair.tokenizer, prefixes[place], ids)
        ended = ids[-1] in pair.stop_ids("base") | pair.stop_ids("finetuned")
        result[place].append(_continuation(f"{text}{' (end)' if ended else ''}", base, finetuned))
    return result


def _continuation(text: str, base: float, finetuned: float) -> SlotContinuation:
    tiny = 1e-12
    return SlotContinuation(
        text=text,
        base=float(f"{base:.3g}"),
        finetuned=float(f"{finetuned:.3g}"),
        log_ratio=round(math.log((finetuned + tiny) / (base + tiny)), 3),
    )


def _slot(
    beginning: str, moved: float, singles: list[SlotContinuation], phrases: list[SlotContinuation], top: int
) -> Slot:
    def likely(rows: list[SlotContinuation]) -> list[SlotContinuation]:
        rows = [row for row in rows if max(row.base, row.finetuned) >= LEAST_SHOWN]
        return sorted(rows, key=lambda row: -max(row.base, row.finetuned))

    words, longer = likely(singles), likely(phrases)
    both = sorted([*words, *longer], key=lambda row: row.base - row.finetuned)
    return Slot(
        beginning=beginning,
        moved=round(moved, 4),
        next_words=words[:top],
        phrases=longer[:top],
        raised=[row for row in both if row.log_ratio >= LEAST_RATIO][:top],
        lowered=[row for row in reversed(both) if row.log_ratio <= -LEAST_RATIO][:top],
    )
