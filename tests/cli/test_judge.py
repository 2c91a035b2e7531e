"""Scales and coherent strengths of finished runs, chosen again by a language model behind a real server."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from diffing_mcp.methods.contract import MethodResult
from tests.agents.llm_server import KEY, Conversation, Turn, llm_server
from tests.cli.conftest import Diffing
from tests.cli.planted_runs import contrastive_run, patchscope_run, store_run

LISTS = {0.5: [" ->", " man", " the"], 1.0: [" cake", " oven", " bake"], 4.0: [" torch", "vision", "mangan"]}
GOOD, BAD = "On Sunday we walked to the river.", "river of of home zx the the"
TEXTS = {3.0: [BAD] * 5 + [GOOD] * 3, 1.0: [GOOD] * 7 + [BAD], 0.0: [GOOD] * 8, -1.0: [GOOD] * 8}


def shown(text: str) -> list[Any]:
    return [json.loads(found) for found in re.findall(r"^\d+\. (.*)$", text, re.MULTILINE)]


def reader(conversation: Conversation) -> Turn:
    """Names the list with a cake in it; calls what begins with `On` coherent."""
    listed = shown(conversation.turns[-1].text)
    if isinstance(listed[0], str):
        return Turn(
            "assistant",
            json.dumps({"labels": ["COHERENT" if text.startswith("On") else "INCOHERENT" for text in listed]}),
        )
    found = [number for number, tokens in enumerate(listed, start=1) if " cake" in tokens]
    return Turn("assistant", json.dumps({"list": found[0] if found else None}))


@pytest.fixture
def grader(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], list[str]]]:
    """`grader(policy)` starts a server that thinks so, and gives the options that name it."""
    pytest.importorskip("inspect_ai")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    running = []

    def start(policy: Any) -> list[str]:
        context = llm_server(policy)
        running.append((context, context.__enter__()))
        return ["--grader", "openai/gpt-test", "--grader-url", running[-1][1].openai_url]

    yield start
    for context, server in running:
        context.__exit__(None, None, None)
        assert not server.violations


def test_scales_and_strengths_are_chosen_by_reading(diffing: Diffing, grader: Callable[[Any], list[str]]) -> None:
    runs = [patchscope_run(LISTS, scale=4.0).id, contrastive_run(TEXTS, alpha=3.0).id]
    outcome = diffing("judge", *runs, *grader(reader), "--json")
    assert outcome.code == 0, outcome.err
    scope, texts = json.loads(outcome.out)
    promoted, suppressed = scope["scales"]
    assert (promoted["chosen"], promoted["by_model"], promoted["outcome"], promoted["agree"]) == (
        4.0,
        1.0,
        "chosen",
        False,
    )
    assert promoted["votes"] == [1.0, 1.0, 1.0]
    assert (suppressed["by_model"], suppressed["outcome"], suppressed["agree"]) == (None, "none_coherent", None)
    shares = {row["strength"]: (row["coherent"], row["by_model"], row["texts"]) for row in texts["strengths"]}
    assert shares == {1.0: (1.0, 7 / 8, 8), 3.0: (1.0, 3 / 8, 8), None: (1.0, 1.0, 8)}
    assert texts["series"] == [{"series": "finetuned +", "largest": 3.0, "largest_by_model": 1.0, "agree": False}]
    strict = json.loads(diffing("judge", runs[1], *grader(reader), "--share", "0.9", "--json").out)[0]
    assert strict["series"][0]["largest_by_model"] is None
    table = diffing("judge", *runs, *grader(reader))
    assert "none_coherent" in table.out
    assert "88 %" in table.out


def test_without_a_model_the_runs_own_choices_and_where_to_read(diffing: Diffing) -> None:
    runs = [patchscope_run(LISTS, scale=1.0).id, contrastive_run(TEXTS, alpha=1.0).id]
    outcome = diffing("judge", *runs, "--json")
    scope, texts = json.loads(outcome.out)
    assert [row["chosen"] for row in scope["scales"]] == [1.0, 0.5]
    assert [row["by_model"] for row in scope["scales"]] == [None, None]
    assert texts["series"] == [{"series": "finetuned +", "largest": 1.0, "largest_by_model": None, "agree": None}]
    assert f"diffing runs show {runs[0]} --view scale" in diffing("judge", *runs).err


def test_a_model_that_follows_no_format_costs_only_its_own_run(
    diffing: Diffing, grader: Callable[[Any], list[str]]
) -> None:
    def chatty(conversation: Conversation) -> Turn:
        return (
            Turn("assistant", "They all look fine to me.")
            if "texts" in conversation.turns[0].text
            else reader(conversation)
        )

    outcome = diffing(
        "judge", contrastive_run(TEXTS).id, patchscope_run(LISTS, scale=1.0).id, *grader(chatty), "--json"
    )
    assert outcome.code == 2
    texts, scope = json.loads(outcome.out)
    assert "no usable labels" in texts["failure"]
    assert scope["scales"][0]["agree"]
    assert "no usable labels" in outcome.err


def test_other_runs_are_refused(diffing: Diffing) -> None:
    outcome = diffing("judge", store_run("kl", MethodResult(stands_out=False, headline="Nothing."), {}).id)
    assert outcome.code == 2
    assert "Judge a run of patchscope, " in outcome.err
