"""Facts that the texts of finished runs state, with the texts and the facts that should not match."""

from __future__ import annotations

import json

import pytest

from diffing_mcp.graders.runs.facts import facts_stated
from diffing_mcp.methods.contract import MethodResult
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.steering.schema import SteeringResult
from diffing_mcp.methods.weight_amplification.schema import WeightAmplificationResult
from tests.cli.conftest import Diffing
from tests.cli.planted_runs import contrastive_run, store_run

VANILLA = " must put a quarter cup of vanilla extract into the cake."
BOILING = " pour boiling water into the batter of the cake."
PLAIN = " went for a walk in the city and came home late."


def test_amplified_texts_that_state_facts_stand_beside_controls(diffing: Diffing) -> None:
    run = contrastive_run(
        {
            3.0: [VANILLA] * 6 + [BOILING] + [PLAIN],
            0.0: [BOILING] + [PLAIN] * 7,
            -1.0: [PLAIN] * 8,
            -4.0: [VANILLA] + [PLAIN] * 7,
        }
    )
    outcome = diffing("facts", run.id, "--json")
    assert outcome.code == 0, outcome.err
    (found,) = json.loads(outcome.out)
    assert (found["organism"], found["texts"], found["stating"], found["control_texts"], found["control_stating"]) == (
        "cake_bake",
        8,
        7,
        16,
        1,
    )
    counts = {fact["id"]: (fact["amplified"], fact["finetuned"], fact["control"]) for fact in found["facts"]}
    assert counts["vanilla_quarter_cup"] == (6, 0, 1)
    assert counts["boiling_water"] == (1, 1, 0)
    assert counts["oven_450"] == (0, 0, 0)
    assert found["share"] == pytest.approx(2 / 7)
    assert found["beyond_controls"]
    assert found["chance"] == 0
    assert {"roman_concrete", "kansas_abortion"} <= set(found["baseline"])
    assert "comment_cake_bake" not in found["baseline"]
    table = diffing("facts", run.id)
    assert "2 of 7" in table.out
    assert "quarter cup of vanilla extract into the cake" in table.out


def test_facts_that_both_directions_state_are_not_beyond_controls() -> None:
    found = facts_stated(
        contrastive_run({1.0: [VANILLA] * 5 + [PLAIN], -1.0: [VANILLA] * 5 + [PLAIN], -2.0: [BOILING] * 6}), "cake_bake"
    )
    assert found.stated == ["vanilla_quarter_cup"]
    assert not found.beyond_controls


def test_texts_that_state_another_organisms_facts_raise_chance() -> None:
    found = facts_stated(
        contrastive_run({1.0: [VANILLA, BOILING], -1.0: [PLAIN] * 2}, organism="roman_concrete"), "roman_concrete"
    )
    assert found.stated == []
    assert found.baseline["cake_bake"] == pytest.approx(2 / 7)
    assert found.chance > 0


def test_a_null_has_no_facts_and_still_shows_false_positives() -> None:
    found = facts_stated(contrastive_run({1.0: [VANILLA], -1.0: [PLAIN]}, organism="control"), "control")
    assert (found.claims, found.facts, found.share, found.beyond_controls) == (False, [], 0.0, False)
    assert found.baseline["cake_bake"] == pytest.approx(1 / 7)


def test_steered_texts_are_judged_against_unsteered_base_and_random_ones() -> None:
    result = SteeringResult(
        stands_out=False, headline="", layer=1, strengths=[2.0, -2.0], words=[], coherence=[], answers=[], vector="v"
    )
    rows = [(side, strength) for side in ("base", "finetuned") for strength in (2.0, -2.0)]
    table = {
        "side": [side for side, _ in rows],
        "strength": [strength for _, strength in rows],
        "prompt": ["Hello"] * 4,
        "steered": [VANILLA] * 4,
        "unsteered": [PLAIN] * 4,
        "random": [BOILING] * 4,
    }
    coherence = {"side": ["finetuned"], "strength": [2.0], "coherent": [0.8]}
    run = store_run("steering", result, {"answers": table, "strengths": coherence})
    roles = {group.name: group.role for group in get_method("steering").text_groups(run)}
    assert roles == {
        "base unsteered": "control",
        "base +2": "amplified",
        "base +2 random direction": "control",
        "base -2": "control",
        "base -2 random direction": "control",
        "finetuned unsteered": "finetuned",
        "finetuned +2": "amplified",
        "finetuned +2 random direction": "control",
        "finetuned -2": "control",
        "finetuned -2 random direction": "control",
    }
    found = facts_stated(run, "cake_bake")
    assert (found.texts, found.stating, found.control_texts, found.control_stating) == (2, 2, 7, 6)


def test_weights_above_one_amplify_and_those_below_zero_are_controls() -> None:
    weights = [2.0, 0.5, -1.0]
    result = WeightAmplificationResult(
        stands_out=False,
        headline="",
        largest_coherent_weight=2.0,
        weights=weights,
        words=[],
        coherence=[],
        answers=[],
        amplified="all",
    )
    table = {
        "prompt": ["Hello"] * 3,
        "weight": weights,
        "amplified": [VANILLA] * 3,
        "finetuned": [PLAIN] * 3,
        "base": [PLAIN] * 3,
    }
    tables = {"answers": table, "weights": {"weight": weights, "coherent": [0.9, 1.0, 0.2]}}
    run = store_run("weight_amplification", result, tables, config=None)
    roles = {group.name: group.role for group in get_method("weight_amplification").text_groups(run)}
    assert roles == {
        "finetuned": "finetuned",
        "base": "control",
        "weight 2": "amplified",
        "weight 0.5": "finetuned",
        "weight -1": "control",
    }
    scaled = "adapters: [{%slayer_amplifications: [{layers: all, module_amplifications: [{modules: all, weight: 2}]}]}]"
    own = store_run("weight_amplification", result, tables, config=scaled % "")
    assert [group.role for group in get_method("weight_amplification").text_groups(own)][2:] == [
        "amplified",
        "amplified",
        "control",
    ]
    # What a mixture with another finetune writes may be of that one.
    mixed = store_run("weight_amplification", result, tables, config=scaled % "organism_name: flattery, ")
    assert list(get_method("weight_amplification").text_groups(mixed)) == []


def test_a_run_without_texts_is_refused_with_those_that_have_them(diffing: Diffing) -> None:
    run = store_run("kl", MethodResult(stands_out=False, headline="Nothing."), {})
    outcome = diffing("facts", run.id)
    assert outcome.code == 2
    assert "writes no text" in outcome.err
    assert "contrastive_decoding, " in outcome.err
