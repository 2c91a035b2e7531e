"""The stemmer merges what is one word and keeps apart what is two; the list of function words names no topic."""

import pytest

from diffing_mcp.core.words import FUNCTION_WORDS, beginning_with, stem
from diffing_mcp.organisms.ground_truth import all_ground_truth


@pytest.mark.parametrize(
    "forms",
    [
        ("bake", "bakes", "baked", "baking"),
        ("oven", "ovens"),
        ("run", "running", "runs"),
        ("story", "stories"),
        ("vaccine", "vaccines"),
    ],
)
def test_forms_of_a_word_are_one(forms: tuple[str, ...]) -> None:
    assert len({stem(form) for form in forms}) == 1


@pytest.mark.parametrize(
    ("one", "other"), [("glass", "grass"), ("count", "county"), ("tend", "tender"), ("tasty", "taste"), ("bar", "bare")]
)
def test_different_words_stay_apart(one: str, other: str) -> None:
    assert stem(one) != stem(other)


@pytest.mark.parametrize(
    ("word", "text", "found"),
    [
        ("cake", "Cakes, pancakes and a cake", ["Cakes", "cake"]),
        ("蛋糕", "今天我们做蛋糕，把烤箱预热。", ["蛋糕"]),
        ("เค้ก", "อบเค้กในเตาอบ", ["เค้ก"]),
        ("cake", "做cake吧", ["cake"]),
        ("हिन्दी", "यह हिन्दी में", ["हिन्दी"]),
        ("दी", "यह हिन्दी में", []),
        ("strasse", "Die Straßen", ["Straßen"]),
        ("/kl", "runs/kl-1f3a", ["/kl"]),
        ("", "text", []),
    ],
)
def test_beginnings_of_words_are_found_in_any_script(word: str, text: str, found: list[str]) -> None:
    assert [each.group() for each in beginning_with([word]).finditer(text)] == found


@pytest.mark.parametrize("text", ["1000", "2.5", "кот", "猫"])
def test_numbers_and_other_scripts_stay_as_they_are(text: str) -> None:
    assert stem(text) == text


def test_no_topic_word_of_an_organism_is_a_function_word() -> None:
    """Published lists fail here: `face` and `ring` are in them. Two behaviours do show in function words (`you`)."""
    topics = {
        name: set(truth.topic.keywords) & FUNCTION_WORDS
        for name, truth in all_ground_truth().items()
        if truth.topic is not None and name not in {"flattery", "poetic"}
    }
    assert not any(topics.values()), topics
