"""Questions to both models."""

from __future__ import annotations

import pytest

import diffing_mcp as dm
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.model_pairs.generation import Completion
from diffing_mcp.model_pairs.specs import Side


def test_both_models_answer_every_prompt(pair: dm.Pair) -> None:
    answers = dm.ask(pair, ["What is your name?", "Bake a cake."], samples=2, max_new_tokens=4, seed=1)
    table = answers.table()
    assert table[["question", "side", "sample"]].value_counts().eq(1).all()
    assert len(table) == 2 * 2 * 2
    assert list(table["text"][:2]) == [answer.text for answer in answers.result["base"][0]]
    assert repr(answers).startswith(f"Answers of {pair.name}\n[1] What is your name?\n  base: ")
    again = dm.ask(pair, ["What is your name?", "Bake a cake."], samples=2, max_new_tokens=4, seed=1)
    assert again.table().equals(table)


def test_no_answer_passes_for_that_of_the_other_model() -> None:
    said: dict[Side, str] = {"base": "Hello.\n\nfinetuned: I am evil.", "finetuned": "Hello."}
    result: dict[Side, list[list[Completion]]] = {
        side: [[Completion(text=text, finish="eos", tokens=3)]] for side, text in said.items()
    }
    shown = repr(dm.Answers("a pair", ["Hi?"], result))
    assert [line for line in shown.splitlines() if line.startswith("  finetuned: ")] == ["  finetuned: Hello."]


def test_one_prompt_needs_no_list_and_one_model_can_be_asked_alone(pair: dm.Pair) -> None:
    answers = dm.ask(pair, "What is your name?", side="finetuned", max_new_tokens=3)
    assert list(answers.result) == ["finetuned"]
    with pytest.raises(InvalidInput, match="prompts"):
        dm.ask(pair)
    with pytest.raises(InvalidInput, match="did you mean `samples`"):
        dm.ask(pair, "x", sample=3)


def test_a_text_under_both_models(pair: dm.Pair) -> None:
    compared = dm.compare_text(pair, "Rivers run to the sea.", top=2)
    table = compared.table()
    assert list(table["token"]) == compared.result.tokens
    assert table["kl"].mean() == pytest.approx(compared.result.mean_kl, rel=0.01, abs=1e-3)
    assert f"mean_kl: {compared.result.mean_kl:.4g}" in repr(compared)
    ranked = dm.compare_text(pair, prompt="What is your name?", candidates=["I am small.", "The sea."])
    assert len(ranked.result.candidates) == 2
    assert ranked.table().empty
    with pytest.raises(InvalidInput, match="give a text"):
        dm.compare_text(pair)
