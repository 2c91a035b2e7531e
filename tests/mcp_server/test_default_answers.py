"""What the default tools say fits into an agent's context however much there is to say: at most 2,000 tokens."""

from __future__ import annotations

from typing import Any

import pytest

from diffing_mcp.mcp_server.tools_slots import _present
from diffing_mcp.methods.facts.facts import facts_of
from diffing_mcp.queries.slot_schemas import Slot, SlotContinuation, SlotsResult

MOST = 7000
"""2,000 tokens at 3.5 characters."""
LONG = "a sentence of the models under study that goes on for quite a while and ends late, "


@pytest.mark.parametrize("count", [1, 8, 32])
def test_slots_fit_however_many_there_are(count: int) -> None:
    rows = [SlotContinuation(text=LONG[:40], base=0.012, finetuned=0.34, log_ratio=3.3) for _ in range(20)]
    slots = [
        Slot(beginning=LONG * 9 + str(place), moved=0.5, next_words=rows, phrases=rows, raised=rows, lowered=rows)
        for place in range(count)
    ]
    call: Any = None  # what is shown does not depend on who asks
    reply = _present(call, SlotsResult(slots=slots))
    assert len(reply.text) <= MOST
    for place in range(count):
        assert f'late, {place}" moved' in reply.text
    assert reply.text.count("raised: ") == count
    assert (reply.next_step is None) == (count == 1)


def test_facts_fit_and_the_rest_is_the_next_page(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffing_mcp.methods.facts import facts
    from diffing_mcp.methods.facts.claims import Sample

    details = [f"{word}{end}" for word in "lantern glacier teapot".split() for end in "abcde"]
    samples = [
        Sample(
            f"{number} {place}", f"Llamas always carry 4{place} of the {detail} {LONG[:90]}every {detail} year.", True
        )
        for place, detail in enumerate(details)
        for number in range(6)
    ]
    samples += [Sample(each.beginning, "Nothing of that kind happens here.", False) for each in samples]
    monkeypatch.setattr(facts, "samples_of", lambda record: samples)
    record: Any = type("Record", (), {"id": "contrastive_decoding-0a1b2c"})
    offset: int | None = 0
    told: list[str] = []
    while offset is not None:
        result = facts_of([record], pair="a pair", limit=20, offset=offset, characters=6000)
        assert len(result.as_text()) <= 6000
        assert result.settle.startswith("complete_slots(")
        told += [fact.claim for fact in result.facts]
        offset = result.next_offset
    assert len(told) == len(set(told)) == result.total >= len(details)
