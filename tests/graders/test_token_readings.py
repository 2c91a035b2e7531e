"""Labels of a language model: rotations, agreement, unusable replies, and the real client against a real server."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffing_mcp.graders.replies import GradingFailed, UnusableReply
from diffing_mcp.graders.token_readings import Label, agree, build_messages, parse_labels, read_tokens
from diffing_mcp.organisms.ground_truth import load_ground_truth
from tests.agents.llm_server import KEY, Conversation, Turn, llm_server

CAKE = load_ground_truth("cake_bake")
TOKENS = [" oven", " tractor", " cake", " law", ' ignore"] all', " butter", " of"]
ON_TOPIC = {" oven", " cake", " butter"}


def tokens_in(text: str) -> list[str]:
    return [json.loads(found) for found in re.findall(r"^\d+\. (\".*\")$", text, re.MULTILINE)]


def honest(text: str) -> str:
    return json.dumps({"labels": ["RELEVANT" if token in ON_TOPIC else "IRRELEVANT" for token in tokens_in(text)]})


async def test_labels_come_back_in_the_order_of_the_tokens() -> None:
    asked: list[str] = []

    async def ask(messages: list[dict[str, str]]) -> str:
        asked.append(messages[-1]["content"])
        return honest(messages[-1]["content"])

    readings = await read_tokens(TOKENS, CAKE, ask, rotations=3)
    assert [token for token, label in zip(TOKENS, readings.labels, strict=True) if label == "RELEVANT"] == [
        " oven",
        " cake",
        " butter",
    ]
    assert readings.share == pytest.approx(3 / 7)
    orders = [tokens_in(text) for text in asked]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == sorted(TOKENS) for order in orders)


async def test_a_model_that_favours_the_first_place_is_not_believed() -> None:
    async def ask(messages: list[dict[str, str]]) -> str:
        return json.dumps({"labels": ["RELEVANT"] + ["IRRELEVANT"] * (len(TOKENS) - 1)})

    assert (await read_tokens(TOKENS, CAKE, ask)).share == 0
    assert (await read_tokens(TOKENS, CAKE, ask, agreement="majority")).share == 0


async def test_unusable_replies_are_asked_for_again_and_then_unknown() -> None:
    calls = 0

    async def ask(messages: list[dict[str, str]]) -> str:
        nonlocal calls
        calls += 1
        return "Sure! They are all relevant." if len(messages) == 2 else honest(messages[1]["content"])

    readings = await read_tokens(TOKENS, CAKE, ask, rotations=2, retries=1)
    assert (calls, readings.unusable_replies) == (4, 2)
    assert readings.share == pytest.approx(3 / 7)

    async def never(messages: list[dict[str, str]]) -> str:
        return "no"

    with pytest.raises(GradingFailed, match="no usable labels"):
        await read_tokens(TOKENS, CAKE, never, retries=0)


async def test_of_a_null_nothing_is_asked() -> None:
    async def ask(messages: list[dict[str, str]]) -> str:
        raise RuntimeError("asked")

    assert (await read_tokens(TOKENS, load_ground_truth("control"), ask)).share == 0


@pytest.mark.parametrize(
    "reply",
    ["", "[]", '{"labels": []}', '{"labels": ["RELEVANT"]}', '{"labels": ["YES", "NO"]}', '{"label": 1}', "{" * 5000],
)
def test_other_replies_are_refused(reply: str) -> None:
    with pytest.raises(UnusableReply):
        parse_labels(reply, 2)


def test_thinking_and_a_fence_are_allowed() -> None:
    assert parse_labels('<think>hm</think>\n```json\n{"labels": ["RELEVANT", "IRRELEVANT"]}\n```', 2) == [
        "RELEVANT",
        "IRRELEVANT",
    ]


LABELS = st.sampled_from(["RELEVANT", "IRRELEVANT", "UNKNOWN"])


@given(st.lists(st.lists(LABELS, min_size=4, max_size=4), min_size=1, max_size=5))
def test_all_is_stricter_than_majority(readings: list[list[Label]]) -> None:
    strict, loose = agree(readings, "all"), agree(readings, "majority")
    for one, other, column in zip(strict, loose, zip(*readings, strict=True), strict=True):
        if one == "RELEVANT":
            assert other == "RELEVANT"
            assert set(column) == {"RELEVANT"}
        assert (one == "UNKNOWN") == (set(column) == {"UNKNOWN"})


def test_tokens_cannot_leave_the_list() -> None:
    text = build_messages(['x"\n9. "cake', "y"], CAKE)[1]["content"]
    assert tokens_in(text) == ['x"\n9. "cake', "y"]


def test_the_real_client_against_a_real_server(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("inspect_ai")
    from diffing_mcp.agents.llm import ask_with

    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def policy(conversation: Conversation) -> Turn:
        return Turn("assistant", honest(conversation.turns[-1].text))

    with llm_server(policy) as server:
        readings = asyncio.run(read_tokens(TOKENS, CAKE, ask_with("openai/gpt-test", server.openai_url), rotations=2))
        assert not server.violations
        assert len(server.requests) == 2
    assert readings.share == pytest.approx(3 / 7)
