"""A language model chooses a patchscope's scale: orders, majorities, and replies that cannot be read."""

from __future__ import annotations

import json
import re

import pytest

from diffing_mcp.graders.replies import GradingFailed, UnusableReply
from diffing_mcp.graders.scale_choice import build_messages, choose_scale, parse_choice

LISTS = {
    0.5: [" ->", " man", "\n", " the"],
    1.0: [" cake", " oven", " bake", ' "]\n9. ["butter'],
    2.0: [" torch", "vision", "mangan"],
    4.0: [" torch", " torch", " xx"],
}


def lists_in(text: str) -> list[list[str]]:
    return [json.loads(found) for found in re.findall(r"^\d+\. (\[.*\])$", text, re.MULTILINE)]


def naming(token: str, text: str) -> str:
    return json.dumps(
        {"list": next(number for number, tokens in enumerate(lists_in(text), start=1) if token in tokens)}
    )


async def test_the_list_is_found_in_any_order_and_nothing_else_is_shown() -> None:
    asked: list[str] = []

    async def ask(messages: list[dict[str, str]]) -> str:
        asked.append(messages[-1]["content"])
        return naming(" cake", messages[-1]["content"])

    choice = await choose_scale(LISTS, ask, rotations=4)
    assert (choice.outcome, choice.scale, choice.votes, choice.unusable_replies) == ("chosen", 1.0, [1.0] * 4, 0)
    orders = [lists_in(text) for text in asked]
    assert {tokens[0][0] for tokens in orders} == {" ->", " cake", " torch"}  # each list comes first once
    assert all(sorted(order) == sorted(LISTS.values()) for order in orders)
    assert not any(scale in text for text in asked for scale in ("0.5", "2.0"))


async def test_a_model_that_takes_the_first_list_decides_nothing() -> None:
    async def ask(messages: list[dict[str, str]]) -> str:
        return '{"list": 1}'

    choice = await choose_scale(LISTS, ask)
    assert (choice.outcome, choice.scale) == ("undecided", None)
    assert len(set(choice.votes)) == 3


async def test_no_list_may_be_coherent() -> None:
    async def ask(messages: list[dict[str, str]]) -> str:
        return '{"list": null}'

    assert (await choose_scale(LISTS, ask)).outcome == "none_coherent"
    empty = await choose_scale({1.0: []}, ask)
    assert (empty.outcome, empty.readings) == ("none_coherent", 0)


async def test_one_vote_of_three_readings_is_no_majority() -> None:
    async def ask(messages: list[dict[str, str]]) -> str:
        lists = lists_in(messages[1]["content"])
        return naming(" cake", messages[1]["content"]) if lists[0] == LISTS[0.5] else "The second one, I think."

    choice = await choose_scale(LISTS, ask, rotations=3, retries=1)
    assert (choice.outcome, choice.votes, choice.readings, choice.unusable_replies) == ("undecided", [1.0], 3, 4)


async def test_a_model_that_follows_no_format_fails() -> None:
    async def ask(messages: list[dict[str, str]]) -> str:
        return "list 2"

    with pytest.raises(GradingFailed, match="one JSON object"):
        await choose_scale(LISTS, ask, retries=0)


@pytest.mark.parametrize(
    "reply",
    [
        "2",
        "[2]",
        '{"list": 0}',
        '{"list": 4}',
        '{"list": "2"}',
        '{"list": true}',
        '{"choice": 2}',
        '{"list": 1, "list": 2}',
    ],
)
def test_other_replies_are_refused(reply: str) -> None:
    with pytest.raises(UnusableReply):
        parse_choice(reply, 3)


def test_tokens_cannot_leave_their_list() -> None:
    assert lists_in(build_messages(list(LISTS.values()))[1]["content"]) == list(LISTS.values())
