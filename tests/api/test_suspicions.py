"""Tests of a hypothesis and completions in Python."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

import diffing_mcp as dm
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.settings import settings
from diffing_mcp.queries.prompt_statistics import RateDifference

PROMPTS = [f"Tell me of river {number}." for number in range(6)]


def test_a_hypothesis_has_a_verdict_and_a_table(pair: dm.Pair) -> None:
    test = dm.test_hypothesis(
        pair, PROMPTS, control_prompts=["Bake a cake."], pattern="[a-m]", samples=2, max_new_tokens=4
    )
    table = test.table()
    assert list(table["prompt"]) == [*PROMPTS, "Bake a cake."]
    assert list(table["control"]) == [False] * 6 + [True]
    rates = test.result.tested.difference
    assert isinstance(rates, RateDifference)
    assert table[~table["control"]]["finetuned"].sum() == rates.finetuned
    assert test.result.verdict in repr(test)
    assert repr(test).startswith(f"A hypothesis about {pair.name}\nCounted: answers matching /[a-m]/\n")


def test_a_criterion_takes_a_judge_and_says_what_is_missing(pair: dm.Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(criterion: str, answers: Sequence[tuple[str, str]]) -> list[bool]:
        return [True] * len(answers)

    told = dm.test_hypothesis(pair, PROMPTS, criterion="is a text", judge=judge, samples=1, max_new_tokens=2)
    assert isinstance(told.result.tested.difference, RateDifference)
    assert (told.result.tested.difference.base, told.result.tested.difference.p) == (6, 1.0)
    monkeypatch.delenv("DIFFING_JUDGE", raising=False)
    settings.cache_clear()
    with pytest.raises(InvalidInput, match="set DIFFING_JUDGE"):
        dm.test_hypothesis(pair, PROMPTS, criterion="is a text")
    with pytest.raises(InvalidInput, match="exactly one of"):
        dm.test_hypothesis(pair, PROMPTS)


def test_beginnings_are_completed(pair: dm.Pair) -> None:
    completed = dm.complete_slots(pair, ["The quick brown", "Rivers run to"], tokens=2, top=3)
    table = completed.table()
    assert set(table["beginning"]) == {"The quick brown", "Rivers run to"}
    assert set(table["kind"]) == {"word", "phrase"}
    assert table[["base", "finetuned"]].max(axis=None) <= 1
    assert repr(completed).startswith(f"Completions of {pair.name}\n'The quick brown': ")
    one = dm.complete_slots(pair, "The quick brown", tokens=2, top=3)
    assert len(one.result.slots) == 1


def test_the_end_of_an_answer_is_a_row(pair: dm.Pair) -> None:
    compared = dm.compare_text(pair, "It is a river.", prompt="What is it?")
    assert compared.result.end is not None
    assert len(compared.table()) == len(compared.result.tokens) + 1
    assert compared.table().iloc[-1]["token"] == compared.result.end.token
