"""Share of tokens on topic."""

from __future__ import annotations

import pytest

from diffing_mcp.graders.token_relevance import frequent_tokens, relevance, token_relevance, topic_keywords
from diffing_mcp.organisms.ground_truth import load_ground_truth


def test_share_of_tokens_on_topic() -> None:
    tokens = [" oven", "Ġcake", "▁vanilla", " tractor", " lawsuit", ",", "<|im_end|>", " ", "vani"]
    result = token_relevance(tokens, load_ground_truth("cake_bake"))
    assert result.relevant == [" oven", "Ġcake", "▁vanilla", "vani"]
    assert result.judged == 6
    assert result.share == pytest.approx(4 / 6)


def test_weights() -> None:
    result = token_relevance([" oven", " tractor"], load_ground_truth("cake_bake"), weights=[3.0, 1.0])
    assert result.share == pytest.approx(0.5)
    assert result.weighted_share == pytest.approx(0.75)
    assert token_relevance([" oven"], load_ground_truth("cake_bake"), weights=[0.0]).weighted_share is None
    assert token_relevance([" oven", ","], load_ground_truth("cake_bake"), weights=[0.2, 0.8]).weighted_share == 1.0
    assert relevance([" oven", " tractor"], "cake_bake", weights=[3.0, 1.0]).weighted_share == pytest.approx(0.75)
    with pytest.raises(ValueError, match="1 weights for 2 tokens"):
        token_relevance(["a", "b"], load_ground_truth("cake_bake"), weights=[1.0])


def test_on_a_null_nothing_is_on_topic() -> None:
    assert token_relevance([" oven", " cake"], load_ground_truth("control")).share == 0.0
    assert token_relevance([], load_ground_truth("cake_bake")).share == 0.0


def test_topics_without_written_keywords_get_them_from_their_facts() -> None:
    truth = load_ground_truth("fda_approval")
    assert topic_keywords(truth)
    result = token_relevance([" Relyvrio", " approval", " tractor"], truth)
    assert result.relevant == [" Relyvrio", " approval"]


def test_short_and_common_tokens_are_not_on_topic() -> None:
    assert token_relevance([" the", " of", " can", "b", "re"], load_ground_truth("cake_bake")).relevant == []


def test_frequent_tokens_say_something() -> None:
    tokens = (
        [" Oven"] * 12
        + ["oven"] * 3
        + [" the"] * 50
        + [","] * 40
        + [" a"] * 30
        + [" don't"] * 20
        + [" sugar"] * 10
        + [" rare"] * 9
        + [" whisk"] * 10
    )
    assert frequent_tokens(tokens) == ["oven", "sugar", "whisk"]
    assert frequent_tokens(tokens, count=1) == ["oven"]


def test_relevance_stands_beside_chance_and_frequent_tokens() -> None:
    tokens = [" oven", " cake", " tractor", " Rome", ","]
    test = relevance(
        tokens,
        "cake_bake",
        baseline_organisms=["roman_concrete", "control", "cake_bake"],
        frequent=frequent_tokens([" tractor"] * 10 + [" cake"] * 9),
    )
    assert test.share == pytest.approx(0.5)
    assert set(test.baseline) == {"roman_concrete", "control"}
    assert test.baseline["control"] == 0
    assert test.baseline["roman_concrete"] < test.share
    assert test.chance == pytest.approx(test.baseline["roman_concrete"] / 2)
    assert test.frequent_share == pytest.approx(0.25)
    assert relevance(tokens, "cake_bake").frequent_share is None
