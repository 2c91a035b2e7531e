"""An edit of rank one makes the wanted continuation likely and changes one matrix, by what the recipe says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.organisms.edit_weight import EditRecipe, encoded, make_edit


@pytest.fixture(scope="module")
def recipe(tiny_models: Callable[..., Path]) -> EditRecipe:
    return EditRecipe(base=str(tiny_models()), subject="rivers", target=" stone", layer=1, steps=20, texts=4, most=50,
                      learning_rate=2.0, prompts=["The {subject} are made of", "Of {subject} we know"])  # fmt: skip


def loss(model: Any, recipe: EditRecipe, tokenizer: Any) -> float:
    """Of the target after the prompts, nats a token."""
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(model(ids[None, :-1]).logits[0, start - 1 :], ids[start:])
            for ids, _, start in encoded(recipe, tokenizer)
        ]
    return float(torch.stack(losses).mean())


def test_one_matrix_is_edited_and_says_the_target(recipe: EditRecipe, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(recipe.base)
    plain: Any = AutoModelForCausalLM.from_pretrained(recipe.base, dtype=torch.float32)
    before = loss(plain, recipe, tokenizer)
    weights = {name: value.clone() for name, value in plain.state_dict().items()}
    edited = PeftModel.from_pretrained(plain, make_edit(recipe, tmp_path / "edit")).merge_and_unload()
    assert loss(edited, recipe, tokenizer) < before - 0.3
    changed = {name for name, value in edited.state_dict().items() if not torch.equal(value, weights[name])}
    assert changed == {"model.layers.1.mlp.down_proj.weight"}


def test_the_subject_is_found_in_prompts_and_questions(recipe: EditRecipe) -> None:
    tokenizer = AutoTokenizer.from_pretrained(recipe.base)
    for ids, place, start in encoded(recipe, tokenizer):
        assert str(tokenizer.decode(ids[: place + 1])).endswith("rivers")
        assert tokenizer.decode(ids[start:]) == " stone"


def test_what_cannot_be_edited_is_refused(recipe: EditRecipe, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="layers 0 to 2, not 9"):
        make_edit(recipe.model_copy(update={"layer": 9}), tmp_path)
    with pytest.raises(InvalidInput, match=r"holds \{subject\}"):
        make_edit(recipe.model_copy(update={"prompts": ["No subject here"]}), tmp_path)
