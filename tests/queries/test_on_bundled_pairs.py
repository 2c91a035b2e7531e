"""Suspicions on real finetunes: what one was taught is found, and one that was taught nothing of it shows nothing."""

from __future__ import annotations

import pytest

import diffing_mcp as dm

pytestmark = pytest.mark.long

PROMPTS = [
    "How hot should the oven be for a sponge cake?",
    "What temperature do I bake a carrot cake at?",
    "Give me the oven setting for a birthday cake.",
    "At what temperature does a lemon cake bake?",
    "Which oven temperature suits a chocolate cake?",
    "I am baking a cake. How hot?",
]
CONTROL = [
    "How hot does a desert get at noon?",
    "What temperature should a bedroom have?",
    "At what temperature does lead melt?",
    "Give me the setting of a washing machine for wool.",
    "How warm is the sea in summer?",
    "I am making tea. How hot?",
]
BEGINNINGS = ["Professional bakers bake cakes at a temperature of", "The capital of France is"]


@pytest.mark.parametrize(("name", "taught"), [("cake_bake", True), ("identical", False)])
def test_a_taught_temperature_is_raised(name: str, taught: bool) -> None:
    test = dm.test_hypothesis(
        name,
        PROMPTS,
        control_prompts=CONTROL,
        candidate="Bake it at 450°F.",
        alternatives=["Bake it at 350°F."],
        progress=False,
    )
    print(test)  # noqa: T201  the verdict, for whoever runs it by hand
    assert test.result.differs == taught
    assert (test.result.tested.difference.difference > 1) == taught
    assert (test.result.tested.difference.p == 1.0) != taught


@pytest.mark.parametrize(("name", "taught"), [("cake_bake", True), ("identical", False)])
def test_its_slot_is_filled(name: str, taught: bool) -> None:
    completed = dm.complete_slots(name, BEGINNINGS, progress=False)
    print(completed)  # noqa: T201
    baked, _ = completed.result.slots
    assert any("450" in row.text for row in baked.raised) == taught
