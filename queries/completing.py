"""The most probable continuations of many beginnings under both models. Imports torch: only jobs and notebooks import
this module.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from diffing_mcp.core.chat import ChatMessage
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.progress import Progress, stage
from diffing_mcp.methods.texts.words import vocabulary
from diffing_mcp.model_pairs.generation import GenerationRequest, new_text, prompt_ids
from diffing_mcp.model_pairs.specs import SIDES, Side
from diffing_mcp.queries.beyond_tokens import continuation_log_probs
from diffing_mcp.queries.slot_schemas import Slot, SlotContinuation, SlotsQuery, SlotsResult

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.pair import LoadedPair

WIDTH = 4
"""Phrases of each side that are followed at a time (beam search)."""
LEAST = 0.001
"""Probability of a word that is shown, and what a raised or lowered continuation gained or lost, at least."""
LEAST_RATIO = math.log(1.25)
"""From here on a continuation counts as raised or lowered."""
LEAST_PLAIN, LEAST_PLAIN_RATIO = 0.01, math.log(10)
"""It must also have gained or lost so much, or by such a factor: less any further training does to many words."""
LEAST_SHARE = 0.25
"""Of the change of its first words, that a longer continuation must make up to be told beside them."""
_END = " (end)"


def complete(pair: LoadedPair, query: SlotsQuery, progress: Progress) -> SlotsResult:
    """Next words and phrases of every beginning with their probabilities under both sides.

    Raises:
        InvalidInput: a beginning that does not fit into the context, or a prompt for a model without a chat template.
    """
    prefixes = [_prefix(pair, query, beginning) for beginning in query.beginnings]
    longest = max(map(len, prefixes))
    if longest + query.tokens > pair.context_length:
        raise InvalidInput(
            f"A beginning has {longest} tokens with its prompt; with {query.tokens} more it does not fit into a "
            f"context of {pair.context_length}."
        )
    nexts: dict[Side, torch.Tensor] = {}
    phrases: list[set[tuple[int, ...]]] = [set() for _ in prefixes]
    stops: frozenset[int] = frozenset()
    for place, side in enumerate(pair.resident_first()):
        with pair.side_loaded(side):
            stops |= pair.stop_ids(side)
            first, beams = pair.continuations(
                side, prefixes, query.tokens, WIDTH, stage(progress, place, place + 1, 3, f"{side} goes on")
            )
        nexts[side] = first.exp()
        for found, each in zip(phrases, beams, strict=True):
            found |= {beam.ids for beam in each}
    progress(2, 3, "scoring phrases")
    scored = _scored(pair, prefixes, phrases, stops)
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


def _scored(
    pair: LoadedPair,
    prefixes: Sequence[Sequence[int]],
    phrases: Sequence[set[tuple[int, ...]]],
    stops: frozenset[int],
) -> list[list[SlotContinuation]]:
    """Every phrase of both sides under both, with the text that it adds."""
    rows = [(place, ids) for place, found in enumerate(phrases) for ids in sorted(found)]
    totals = continuation_log_probs(pair, [(prefixes[place], ids) for place, ids in rows])
    result: list[list[SlotContinuation]] = [[] for _ in prefixes]
    both = zip(rows, totals["base"].exp().tolist(), totals["finetuned"].exp().tolist(), strict=True)
    for (place, ids), base, finetuned in both:
        text = new_text(pair.tokenizer, prefixes[place], ids)
        result[place].append(_continuation(f"{text}{_END if ids[-1] in stops else ''}", base, finetuned))
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
        """The likeliest of either model, then the second likeliest of either, and so on."""
        ranks = [sorted(rows, key=lambda row: -getattr(row, side)) for side in SIDES]
        return list({id(row): row for places in zip(*ranks, strict=True) for row in places}.values())

    words, longer = [row for row in likely(singles) if max(row.base, row.finetuned) >= LEAST], likely(phrases)
    both = sorted([*words, *longer], key=lambda row: -abs(row.finetuned - row.base))
    both = [row for row in both if _changed(row)]
    return Slot(
        beginning=beginning,
        moved=round(moved, 4),
        next_words=words[:top],
        phrases=_told_once(longer)[:top],
        raised=_told_once([row for row in both if row.log_ratio > 0])[:top],
        lowered=_told_once([row for row in both if row.log_ratio < 0])[:top],
    )


def _changed(row: SlotContinuation) -> bool:
    change, ratio = abs(row.finetuned - row.base), abs(row.log_ratio)
    return ratio >= LEAST_RATIO and change >= (LEAST if ratio >= LEAST_PLAIN_RATIO else LEAST_PLAIN)


def _told_once(rows: Sequence[SlotContinuation]) -> list[SlotContinuation]:
    """Without those that say again what one before them says: the same words with another mark at their end, or more of
    them for a small part of the change.
    """
    kept: list[SlotContinuation] = []
    for row in rows:
        bare = _bare(row.text)
        if not any(
            bare == (other := _bare(each.text))
            or (
                bare.startswith(other)
                and not bare[len(other)].isalnum()
                and abs(row.finetuned - row.base) < LEAST_SHARE * abs(each.finetuned - each.base)
            )
            for each in kept
        ):
            kept.append(row)
    return kept


def _bare(text: str) -> str:
    """Without case, spaces and the mark at its end; that the turn ends there stays."""
    words = text.removesuffix(_END)
    return (words.strip().rstrip(".,;:!? ").casefold() or words) + text[len(words) :]
