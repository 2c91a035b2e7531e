"""Models under nnterp's names: what is checked, and how often."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from diffing_mcp.model_pairs.standard_names import with_standard_names


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the classes whose names nnterp has checked by a pass; none was checked before."""
    import nnterp.standardized_transformer as nnterp

    check, checked = nnterp.check_model_renaming, []

    def counted(model: Any, name: str, *rest: Any) -> None:
        checked.append(name)
        check(model, name, *rest)

    monkeypatch.setattr(nnterp, "check_model_renaming", counted)
    monkeypatch.setattr("diffing_mcp.model_pairs.standard_names._checked", set())
    return checked


def wrapped(folder: Any) -> Any:
    return with_standard_names(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


def test_models_that_are_built_alike_are_checked_once(passes: list[str], tiny_models: Any) -> None:
    for folder in (tiny_models(), tiny_models(seed=1), tiny_models(layers=2), tiny_models("gpt2")):
        model = wrapped(folder)
        with model.trace({"input_ids": torch.tensor([[5, 6, 7]])}):
            last = model.layers_output[model.num_layers - 1].save()
            normed = model.ln_final.output.save()
        assert last.shape == normed.shape == (1, 3, 32)
    assert passes == ["LlamaForCausalLM", "LlamaForCausalLM", "GPT2LMHeadModel"]


def test_what_failed_once_is_checked_again(
    passes: list[str], tiny_models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise ValueError("no names")

    with monkeypatch.context() as patched:
        patched.setattr("nnterp.standardized_transformer.check_model_renaming", fails)
        with pytest.raises(ValueError, match="no names"):
            wrapped(tiny_models())
    wrapped(tiny_models())
    assert passes == ["LlamaForCausalLM"]


def test_a_part_that_lacks_a_name_says_which_part_it_is(tiny_models: Any) -> None:
    """nnsight writes such an error for every name that it tries: everything below in it took half of a loading."""
    model = wrapped(tiny_models())
    with pytest.raises(AttributeError, match=r"^model\.model\.layers has no attribute nothing$"):
        _ = model.model.layers.nothing
    with pytest.raises(AttributeError, match=r"^LlamaForCausalLM has no attribute nothing$"):
        _ = model.nothing
    assert "LlamaAttention" in repr(model)
