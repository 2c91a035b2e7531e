"""Pairs by name, by folder, and of models in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import diffing_mcp as dm
from diffing_mcp.api.pairs import models_of_this_process
from diffing_mcp.core.errors import InvalidInput, NotTheSame, UnknownName
from diffing_mcp.model_pairs.fingerprint import pair_identity
from tests.api.conftest import SMALL


def read_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def read_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def scaled(model: Any) -> None:
    """A finetune: one matrix is larger."""
    model.model.layers[1].mlp.down_proj.weight.mul_(1.5)


def halved(model: Any) -> None:
    """Another one: the matrix is smaller."""
    model.model.layers[1].mlp.down_proj.weight.mul_(0.5)


def test_a_catalogue_pair_by_its_name() -> None:
    pair = dm.load_pair("cake_bake")
    assert pair.name == "cake_bake/default@smollm2-135m"
    assert pair.name in repr(pair)
    listed = dm.list_pairs()
    assert pair.name in set(listed["name"])
    assert list(dm.list_pairs(offline=True)["available_offline"].unique()) == [True]


def test_what_names_no_pair_is_refused(pair: dm.Pair) -> None:
    with pytest.raises(UnknownName, match="Did you mean cake_bake"):
        dm.load_pair("cake_bak")
    with pytest.raises(InvalidInput, match="not int"):
        dm.load_pair("embedded:smollm2-135m-instruct", 3)
    with pytest.raises(InvalidInput, match="two are a base and a finetune"):
        dm.load_pair(Path("somewhere"))


def test_a_pair_is_loaded_when_it_is_used_and_kept_while_it_is_held(pair: dm.Pair) -> None:
    models_of_this_process.cache_clear()  # what other tests have loaded is not this test's to release
    with pair as loaded:
        assert loaded.num_layers == 3
        with pytest.raises(InvalidInput, match="in use"):
            pair.unload()
        with pair as again:
            assert again.spec == loaded.spec
        with pytest.raises(InvalidInput, match="in use"):
            pair.unload()
    assert pair.unload() > 0
    with pytest.raises(UnknownName):
        pair.unload()
    assert pair.load() is pair
    assert pair.unload() > 0


def test_a_pair_releases_its_own_models_whatever_it_is_called(
    tiny_models: Callable[..., Path], tiny_adapters: Callable[..., Path]
) -> None:
    models_of_this_process.cache_clear()
    base, finetuned, other = tiny_models(), tiny_models(change=scaled), tiny_models(change=halved)
    mine, theirs = dm.load_pair(base, finetuned, name="mine"), dm.load_pair(base, other, name="mine")
    for pair in (mine, theirs, dm.load_pair(base, tiny_adapters(base), name="mine")):
        pair.load()
    held = models_of_this_process().models
    assert len(held.status()) == 3
    assert dm.load_pair(base, finetuned).unload() > 0
    assert [status.label for status in held.status()] == [str(other)]
    theirs.unload()
    assert held.status() == []


def test_models_in_memory_give_the_numbers_of_their_folders(tiny_models: Callable[..., Path]) -> None:
    base, finetuned = tiny_models(), tiny_models(change=scaled)
    from_folders = dm.kl(dm.load_pair(base, finetuned), **SMALL)
    pair = dm.load_pair(read_model(base), read_model(finetuned), tokenizer=read_tokenizer(base))
    from_memory = dm.kl(pair, **SMALL)
    assert from_folders.result.kl_finetuned_base.mean > 0
    assert from_memory.result == from_folders.result
    assert "/" not in pair.name


def test_a_model_in_memory_is_saved_once_and_again_when_it_changes(tiny_models: Callable[..., Path]) -> None:
    base = tiny_models()
    model, tokenizer = read_model(tiny_models(change=scaled)), read_tokenizer(base)

    def pair() -> dm.Pair:
        return dm.load_pair(base, model, tokenizer=tokenizer, name="mine")

    def files(pair: dm.Pair) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in Path(pair.spec.finetuned.files.id).iterdir()}

    first = pair()
    assert first.name == "mine"
    written = files(first)
    assert pair().spec == first.spec
    assert files(first) == written
    with torch.no_grad():
        scaled(model)
    second = pair()
    assert second.spec.finetuned != first.spec.finetuned
    assert pair_identity(second.spec) != pair_identity(first.spec)
    assert dm.kl(second, **SMALL).result.kl_finetuned_base.mean > dm.kl(first, **SMALL).result.kl_finetuned_base.mean


@pytest.mark.parametrize("adapter_name", ["default", "mine"])
def test_of_a_peft_model_the_adapter_is_the_finetuned_side(
    tiny_models: Callable[..., Path], tiny_adapters: Callable[..., Path], adapter_name: str
) -> None:
    from peft import PeftModel

    base = tiny_models()
    adapter = tiny_adapters(base)
    model = read_model(base)
    adapted = PeftModel.from_pretrained(model, adapter, adapter_name=adapter_name)
    pair = dm.load_pair(base, adapted)
    assert pair.spec.finetuned.adapter is not None
    assert dm.kl(pair, **SMALL).result == dm.kl(dm.load_pair(base, adapter), **SMALL).result
    # peft has put its layers into the object that it was given.
    with pytest.raises(InvalidInput, match="has adapter layers in it"):
        dm.load_pair(model, adapted, tokenizer=read_tokenizer(base))
    adapted.load_adapter(adapter, adapter_name="other")
    tuner: Any = adapted.base_model
    tuner.set_adapter([adapter_name, "other"])
    with pytest.raises(InvalidInput, match="2 active adapters"):
        dm.load_pair(base, adapted)


def test_models_that_cannot_be_saved_or_read_are_refused(tiny_models: Callable[..., Path]) -> None:
    base = tiny_models()
    model = read_model(base)
    with pytest.raises(InvalidInput, match="tokenizer="):
        dm.load_pair(model, model)
    with pytest.raises(InvalidInput, match="not in memory"):
        dm.load_pair(base, read_model(base).to("meta"))
    one, other = (layer.mlp.down_proj for layer in model.model.layers[:2])
    one.weight = other.weight
    with pytest.raises(InvalidInput, match="cannot be saved by its own"):
        dm.load_pair(base, model)


def test_a_tokenizer_that_is_given_is_read_or_refused(
    tiny_models: Callable[..., Path], tiny_adapters: Callable[..., Path], tmp_path: Path
) -> None:
    from peft import PeftModel

    base, bare = tiny_models(), tmp_path / "bare"
    tokenizer = read_tokenizer(base)
    adapted = PeftModel.from_pretrained(read_model(base), tiny_adapters(base))
    read_model(base).save_pretrained(bare)
    given = dm.load_pair(bare, adapted, tokenizer=tokenizer)
    in_files = dm.load_pair(base, adapted)
    assert dm.kl(given, **SMALL).result == dm.kl(in_files, **SMALL).result
    for sides in (("cake_bake",), (base, base)):
        with pytest.raises(InvalidInput, match="goes with models in memory"):
            dm.load_pair(*sides, tokenizer=tokenizer)
    unnamed: Any
    for unnamed in ("", " ", 5):
        with pytest.raises(InvalidInput, match="name of a pair is a text"):
            dm.load_pair("cake_bake", name=unnamed)


def test_the_ends_of_a_model_s_answers_are_part_of_it_and_its_sampling_is_not(tiny_models: Callable[..., Path]) -> None:
    base = tiny_models()
    model = read_model(tiny_models(change=scaled))
    own = model.generation_config

    def stops() -> frozenset[int]:
        with dm.load_pair(base, model) as pair, pair.sides["finetuned"].hold() as resident:
            return resident.stop_ids

    own.eos_token_id = 7
    assert 7 in stops()
    own.eos_token_id = [7, 9]
    assert stops() >= {7, 9}
    own.temperature = 0.6  # contradicts its do_sample, so transformers refuses to save it
    own.eos_token_id = 11
    assert 11 in stops()
    assert model.generation_config is own
    assert own.temperature == 0.6


def test_a_compiled_model_is_the_model(tiny_models: Callable[..., Path]) -> None:
    base = tiny_models()
    model = read_model(tiny_models(change=scaled))
    assert dm.load_pair(base, torch.compile(model)).spec == dm.load_pair(base, model).spec


def test_a_model_compared_with_itself_is_refused_when_it_is_used(tiny_models: Callable[..., Path]) -> None:
    base = tiny_models()
    pair = dm.load_pair(read_model(base), read_model(base), tokenizer=read_tokenizer(base))
    with pytest.raises(NotTheSame):
        dm.kl(pair, **SMALL)
