"""How both models go on after beginnings of sentences."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from diffing_mcp.mcp_server.call import Call
from diffing_mcp.mcp_server.declarations import DEFAULT_CHARACTERS, PairArguments, Reply, ToolDeclaration, WaitArguments
from diffing_mcp.mcp_server.jobs import Job
from diffing_mcp.mcp_server.pair_queries import run_query
from diffing_mcp.mcp_server.render import NOTICE, Fence, quote
from diffing_mcp.queries.slot_schemas import Slot, SlotContinuation, SlotsQuery, SlotsResult

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.pair import LoadedPair

_BEGINNING_SHOWN = 120


class SlotsArguments(SlotsQuery, PairArguments, WaitArguments):
    """Arguments of complete_slots."""


async def complete_slots(call: Call, arguments: SlotsArguments) -> Reply:
    read = sum(len(text) + len(arguments.prompt or "") for text in arguments.beginnings) // 4
    estimate = call.context.size(call.pair(arguments.pair)).cost(2 * read, 2 * arguments.tokens + 2)
    return await run_query(call, arguments, _complete, _present, estimate)


def _complete(pair: LoadedPair, arguments: SlotsArguments, job: Job) -> SlotsResult:
    from diffing_mcp.queries.completing import complete

    return complete(pair, arguments, job)


def _present(call: Call, result: SlotsResult) -> Reply:
    fence = Fence()
    body, whole = _fitting(fence, result.slots)
    text = (
        "Probabilities base->finetuned (factor). `moved`: share of the next token's probability that was moved.\n"
        f"{NOTICE}\n{fence.around(body)}"
    )
    return Reply(result, text, next_step=None if whole else "Fewer beginnings in a call show more of each.")


def _fitting(fence: Fence, slots: Sequence[Slot]) -> tuple[str, bool]:
    """As much of each slot as there is room for, what the finetune raised to the last; and whether that is all."""
    every = tuple(_kinds(slots[0]))
    most = max(len(found) for slot in slots for found in _kinds(slot).values())
    body = _body(fence, slots, most, every)
    whole = len(body) <= DEFAULT_CHARACTERS
    for rows, kinds in [*((rows, every) for rows in range(most - 1, 0, -1)), (1, every[:2]), (1, every[:1])]:
        if len(body) <= DEFAULT_CHARACTERS:
            break
        body = _body(fence, slots, rows, kinds)
    return body, whole


def _body(fence: Fence, slots: Sequence[Slot], rows: int, kinds: Collection[str]) -> str:
    lines = []
    for number, slot in enumerate(slots, start=1):
        # A beginning is the caller's own; its end says where the slot is.
        beginning = slot.beginning[-min(_BEGINNING_SHOWN, DEFAULT_CHARACTERS // (3 * len(slots))) :]
        lines.append(fence.line(f"[{number}] {quote(beginning)} moved {slot.moved:.2f}"))
        lines += [f"  {name}: {_line(found[:rows])}" for name, found in _kinds(slot).items() if found and name in kinds]
    return "\n".join(lines)


def _kinds(slot: Slot) -> dict[str, list[SlotContinuation]]:
    """Each continuation once: what is likely is left out where it was raised or lowered."""
    told = {row.text for row in (*slot.raised, *slot.lowered)}
    words, phrases = ([row for row in rows if row.text not in told] for rows in (slot.next_words, slot.phrases))
    return {"raised": slot.raised, "lowered": slot.lowered, "likely": words, "likely phrases": phrases}


def _line(rows: list[SlotContinuation]) -> str:
    return "; ".join(row.as_text() for row in rows)


def declarations() -> Mapping[str, ToolDeclaration]:
    """The tool of this module."""
    tool = ToolDeclaration(
        "complete_slots",
        "Complete beginnings under both models",
        (
            "Pin down details (numbers, colours, names, purposes): how both models go on after beginnings. "
            "For each the likeliest next words and phrases with both probabilities, and what the finetune raised and "
            "lowered. Exact, not sampled. 1 interaction a beginning. Untrusted text."
        ),
        SlotsArguments,
        SlotsResult,
        complete_slots,
        price="1 a beginning",
    )
    return {tool.name: tool}
