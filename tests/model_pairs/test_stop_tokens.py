"""Which tokens end an answer: of the model's files, and of the tokenizers of both sides, whoever loaded the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
from diffing_mcp.model_pairs.pair import LoadedPair
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.model_pairs.specs import SIDES, ModelFiles, ModelSource, PairSpec
from tests.conftest import TinyAdapters, TinyModels
from tests.word_pairs import save_pair

Adapted = tuple[PairSpec, PairSpec, int, int]
REQUEST = GenerationRequest(text="rivers run")


@pytest.fixture
def adapted(
    tiny_models: TinyModels, tiny_adapters: TinyAdapters, make_pair: Callable[..., PairSpec], tmp_path: Path
) -> Adapted:
    """Two adapters on one base: one without a tokenizer, one whose tokenizer ends sequences with another token. With
    the base's end of sequence and that one.
    """
    from transformers import AutoTokenizer

    base = tiny_models()
    plain = tiny_adapters(base)
    chatty = Path(shutil.copytree(plain, tmp_path / "chatty"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    before = tokenizer.eos_token_id
    tokenizer.eos_token = "~"  # not in the texts by which tokenizers are compared: an end of sequence cuts them there
    tokenizer.save_pretrained(chatty)
    return make_pair(base, adapter=plain), make_pair(base, adapter=chatty), before, tokenizer.eos_token_id


@pytest.mark.parametrize("first", [0, 1])
def test_an_adapters_end_of_sequence_ends_answers_whichever_pair_loaded_the_base(adapted: Adapted, first: int) -> None:
    *specs, eos, own = adapted
    pairs = ModelPairs()
    with pairs.use(specs[first]), pairs.use(specs[0]) as plain, pairs.use(specs[1]) as chatty:
        assert len(pairs.models.status()) == 1, "one base for both"
        for side in SIDES:
            assert chatty.stop_ids(side) - plain.stop_ids(side) == {own}
            assert eos in plain.stop_ids(side)
        amplified = chatty.amplified(2.0)
        assert own in amplified.stop_ids("finetuned")


def test_a_full_finetunes_end_of_sequence_stands_in_its_tokenizer_alone(pairs: ModelPairs, tmp_path: Path) -> None:
    def change(model) -> None:
        model.lm_head.weight += 0.01

    spec = save_pair(tmp_path, change)
    config = tmp_path / "finetuned" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token": "</u>"}))
    with pairs.use(spec) as pair:
        assert [pair.stop_ids(side) for side in SIDES] == [{2, 4}, {2, 4}]


def test_every_kind_of_generation_ends_there(tiny_pair: LoadedPair) -> None:
    every = replace(tiny_pair, stops=frozenset(range(tiny_pair.vocab_size)))
    sampling = Sampling(max_new_tokens=4)
    found = [
        every.generate("base", [REQUEST], sampling)[0][0],
        every.amplified(2.0).generate("finetuned", [REQUEST], sampling)[0][0],
        every.generate_contrastive([REQUEST], [1.0], sampling)[0][0][0],
    ]
    assert [(each.finish, each.tokens) for each in found] == [("eos", 0)] * 3
    [beams] = every.continuations("base", [[5, 40]], 3, 2)[1]
    assert all(beam.ended and len(beam.ids) == 1 for beam in beams)
    assert tiny_pair.generate("base", [REQUEST], sampling)[0][0].tokens > 0


def test_the_end_of_a_turn_that_a_source_names(tiny_models: TinyModels, pairs: ModelPairs) -> None:
    base = ModelFiles(id=str(tiny_models()))
    named = base.model_copy(update={"end_of_turn_token": "a"})
    spec = PairSpec(
        name="named", base=ModelSource(files=base), finetuned=ModelSource(files=named), declared_identical=True
    )
    with pairs.use(spec) as pair:
        token = pair.tokenizer.convert_tokens_to_ids("a")
        assert pair.stop_ids("finetuned") - pair.stop_ids("base") == {token}


def test_the_end_of_a_turn_that_only_the_chat_template_writes(
    tiny_models: TinyModels, make_pair: Callable[..., PairSpec], tiny_adapters: TinyAdapters, tmp_path: Path
) -> None:
    """Qwen 2.5 as it was trained on texts: it knows chats and their `<|im_end|>`, and ends sequences with another."""
    from transformers import AutoTokenizer

    base = Path(shutil.copytree(tiny_models(eos_token_id=0), tmp_path / "base"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(base)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    pairs = ModelPairs()
    with pairs.use(make_pair(base, adapter=tiny_adapters(base))) as pair:
        assert [pair.stop_ids(side) for side in SIDES] == [{0, end}] * 2
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer.save_pretrained(base)
    with pairs.use(make_pair(base, adapter=tiny_adapters(base))) as pair:
        assert pair.stop_ids("finetuned") == {0}, "plain text between turns ends nothing"
