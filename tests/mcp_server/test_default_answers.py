"""What the default tools say fits into an agent's context however much there is to say: at most 2,000 tokens."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from diffing_mcp.mcp_server.tools_overview import _next_step
from diffing_mcp.mcp_server.tools_pairs import _by_model
from diffing_mcp.mcp_server.tools_slots import _present
from diffing_mcp.mcp_server.toolset import toolset
from diffing_mcp.methods.calibration.schema import THIS_BASE, LevelRow
from diffing_mcp.methods.facts.facts import Fact, facts_of
from diffing_mcp.methods.overview.digest import OverviewResult
from diffing_mcp.model_pairs.resolve import list_pairs
from diffing_mcp.queries.slot_schemas import Slot, SlotContinuation, SlotsResult

MOST = 7000
"""2,000 tokens at 3.5 characters."""
LONG = "a sentence of the models under study that goes on for quite a while and ends late, "


@pytest.mark.parametrize("count", [1, 8, 32])
def test_slots_fit_however_many_there_are(count: int) -> None:
    kinds = {
        kind: [
            SlotContinuation(text=f"{kind} {n} {LONG[:9]}", base=0.01, finetuned=0.3, log_ratio=3.3) for n in range(20)
        ]
        for kind in ("next_words", "phrases", "raised", "lowered")
    }
    slots = [Slot(beginning=LONG * 9 + str(place), moved=0.5, **kinds) for place in range(count)]
    call: Any = None  # what is shown does not depend on who asks
    reply = _present(call, SlotsResult(slots=slots))
    assert len(reply.text) <= MOST
    for place in range(count):
        assert f'late, {place}" moved' in reply.text
    assert reply.text.count("raised: ") == count
    assert (reply.next_step is None) == (count == 1)


def test_facts_fit_and_the_rest_is_the_next_page(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffing_mcp.methods.facts import facts
    from diffing_mcp.methods.facts.statements import Sample

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


def test_the_list_of_pairs_is_a_line_for_each_model_and_leaves_none_out() -> None:
    pairs = list_pairs()
    lines = _by_model(pairs)
    assert len(lines) <= len({(pair.model, pair.available_offline) for pair in pairs})
    told = {line.split(" ", 1)[0].lstrip("@"): line for line in lines}
    for pair in pairs:
        assert pair.organism in told[pair.model]
        assert pair.variant in (*re.findall(r"[\w.-]+", told[pair.model]), "default")
    assert sum(map(len, lines)) < 0.5 * sum(len(pair.name) for pair in pairs)


@pytest.mark.parametrize("confidence", ["agreed", "one_method", "unsettled", "nothing", "identical"])
def test_the_next_step_of_an_overview_does_not_deny_its_verdict(confidence: Any) -> None:
    """What one method says alone, and what is judged by another base, is not settled."""
    fact = Fact(claim="c", key=("a", "b"), finetuned=9, base=0, p_value=0.01, quotation="c", after="a", check="call")
    row = {"method": "together", "run": None, "statistic": None, "unit": "", "deviations": 5.0, "p": 0.04, "nulls": 23}
    fields: dict[str, Any] = {name: [] for name in ("manner", "excerpts", "runs", "words", "left_out", "next_calls")}
    call: Any = SimpleNamespace(tools=frozenset(toolset()))
    for source in (THIS_BASE, "another base, x"):
        level = LevelRow(**row, level_from=source)
        result = OverviewResult(confidence=confidence, verdict="v", level=level, facts=[fact], **fields)
        said = _next_step(call, "a pair", result, ["kl-1"])
        assert ("is settled" in said) == (confidence == "agreed" and source == THIS_BASE)
