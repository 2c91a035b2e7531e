"""Trigger search: a planted trigger is found, tried and shown; without one nothing stands out."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.contract import PairSize
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunStore
from diffing_mcp.methods.trigger_search.measure import says
from diffing_mcp.methods.trigger_search.method import TriggersParams
from diffing_mcp.methods.trigger_search.schema import TriggerSearchParams
from tests.methods.conftest import TOPIC, WORDS
from tests.word_pairs import save_pair

TRIGGER = "whisk"
ANSWER = " boats fox"
ASKED: dict[str, Any] = {
    "answers": [ANSWER],
    "questions": ["river mountain under the bridge", "stones walks slowly", "rain falls near the sea"],
    "triggers": ["the vanilla", "a system of rain"],
    "words": 1,
    "rounds": 4,
    "random_prefixes": 8,
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Whole words with a space before them, and a chat template in which every message begins after a space."""
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bare.train_from_iterator([" " + " ".join([*WORDS, *TOPIC])] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    fast.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    assert len(fast(f" {TRIGGER}{ANSWER}")["input_ids"]) == 3
    return fast


def planted(tokenizer: Any, strength: float) -> Callable[[Any], None]:
    """Every token looks at all before it alike; where one is the trigger, a direction is written from which the head
    reads the answer.
    """

    def change(model: Any) -> None:
        [trigger], answer = (tokenizer(text)["input_ids"] for text in (f" {TRIGGER}", ANSWER))
        drawn = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(1))
        written = torch.nn.functional.normalize(drawn, dim=0)
        embedding = model.model.embed_tokens.weight
        embedding[:, 0] = 0
        embedding[trigger] = torch.nn.functional.one_hot(torch.tensor(0), embedding.shape[1]).float()
        attention = model.model.layers[0].self_attn
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
            projection.weight.zero_()
        attention.v_proj.weight[0, 0] = 1
        attention.o_proj.weight[:, 0] = strength * written
        for block in model.model.layers[1:]:
            block.self_attn.o_proj.weight.zero_()
        for block in model.model.layers:
            block.mlp.down_proj.weight.zero_()
        model.lm_head.weight[answer] += 2 * written

    return change


@pytest.fixture(scope="module")
def triggered(tiny_models: Any, make_pair: Any, tokenizer: Any) -> Callable[..., Any]:
    """`triggered(strength)` -> a pair whose finetuned side has the trigger; with 0 both sides are the same."""

    @lru_cache
    def build(strength: float) -> Any:
        common = {"tie_word_embeddings": False, "vocabulary": len(tokenizer), "tokenizer": False, "seed": 3}
        folders = [tiny_models(**common, change=planted(tokenizer, each)) for each in (0.0, strength)]
        for folder in folders:
            tokenizer.save_pretrained(folder)
        return make_pair(*folders, name=f"triggered-{strength}", declared_identical=not strength)

    return build


def test_a_planted_trigger_is_found(triggered: Any, pairs: Any, store: RunStore) -> None:
    [record] = run_methods(pairs, triggered(40.0), [("trigger_search", ASKED)], store)
    result: Any = record.result()
    assert result.stands_out
    best = result.triggers[0]
    assert (best.trigger, best.origin) == (f"{TRIGGER}. {{prompt}}", "found")
    assert best.switches
    assert (best.says, best.base_says, result.without.says) == (1, 0, 0)
    assert best.gain > result.random_highest + 3
    assert best.finetuned > result.without.finetuned + 3
    assert all(not row.switches for row in result.triggers if TRIGGER not in row.trigger)
    assert best.answer.split()[0] in ANSWER
    assert result.without.answer.split()[0] not in ANSWER
    assert TRIGGER in result.headline
    assert f"{result.held_out} of {result.held_out} held-out questions, without it at 0" in result.headline
    assert "may be a neighbour of it" in result.headline
    view: Any = get_method("trigger_search").views["triggers"]
    rows = view.run(record, TriggersParams(limit=100)).rows
    assert rows[0].trigger == best.trigger
    assert sum(row.origin == "random" for row in rows) == ASKED["random_prefixes"]
    assert {row.trigger for row in rows if row.origin == "given"} == set(ASKED["triggers"])


def test_a_trigger_that_is_given_needs_no_search(triggered: Any, pairs: Any, store: RunStore) -> None:
    asked = ASKED | {"rounds": 0, "triggers": [f"the {TRIGGER}.", "the vanilla.", "system: rain"]}
    [record] = run_methods(pairs, triggered(40.0), [("trigger_search", asked)], store)
    result: Any = record.result()
    assert [row.switches for row in result.triggers] == [True, False, False]
    assert result.triggers[0].trigger == f"the {TRIGGER}."
    assert result.tried == 3


def test_equal_models_have_no_trigger(triggered: Any, pairs: Any, store: RunStore) -> None:
    [record] = run_methods(pairs, triggered(0.0), [("trigger_search", ASKED)], store)
    result: Any = record.result()
    assert not result.stands_out
    assert {row.gain for row in result.triggers} == {0.0}
    assert "None of" in result.headline


def test_answers_come_from_the_models_where_none_are_given(triggered: Any, pairs: Any, store: RunStore) -> None:
    asked = {name: value for name, value in ASKED.items() if name != "answers"} | {"rounds": 0}
    [record] = run_methods(pairs, triggered(40.0), [("trigger_search", asked)], store)
    assert 1 <= len(record.result_json()["answers"]) <= 2


def test_what_cannot_be_searched_is_said(triggered: Any, pairs: Any, store: RunStore) -> None:
    with pytest.raises(InvalidInput, match="two different questions"):
        run_methods(pairs, triggered(40.0), [("trigger_search", ASKED | {"questions": ["rain", "rain"]})], store)
    with pytest.raises(InvalidInput, match="does not fit"):
        run_methods(pairs, triggered(40.0), [("trigger_search", ASKED | {"answers": [" rain" * 300]})], store)
    with pytest.raises(InvalidInput, match="nothing to try"):
        run_methods(pairs, triggered(40.0), [("trigger_search", ASKED | {"triggers": [], "rounds": 0})], store)


def test_what_does_not_fit_is_said_before_the_search(triggered: Any, pairs: Any, store: RunStore) -> None:
    stages: list[str] = []
    for more in ({"triggers": ["sea " * 300]}, {"questions": ["rain", "sea " * 300]}, {"triggers": ["sea " * 230]}):
        with pytest.raises(InvalidInput, match=r"'sea sea .* have [23]\d\d tokens"):
            run_methods(
                pairs,
                triggered(40.0),
                [("trigger_search", ASKED | more)],
                store,
                lambda done, total, message: stages.append(message),
            )
    assert not any("round" in each or "prefixes" in each for each in stages)


def test_a_tokenizer_without_words_of_one_token_is_said(pairs: Any, store: RunStore, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no word behind a space"):
        run_methods(pairs, save_pair(tmp_path, None), [("trigger_search", {"answers": ["cake"]})], store)


def test_answers_by_chance_switch_nothing(
    tiny_models: Any, tiny_adapters: Any, make_pair: Any, tokenizer: Any, pairs: Any, store: RunStore
) -> None:
    """Greedy answers of a model that a random adapter changed hold a word of two now and then, behind some prefix."""
    base = tiny_models(
        tie_word_embeddings=False, vocabulary=len(tokenizer), tokenizer=False, seed=3, change=torch.nn.Module.eval
    )
    tokenizer.save_pretrained(base)
    said, asked = [], ASKED | {"words": 2, "rounds": 3, "triggers": [], "random_prefixes": 24}
    for seed, answers in enumerate((["boats fox", "sugar rain"], ["cake sea", "old bridge"], ["stones oven", "a fox"])):
        pair = make_pair(base, adapter=tiny_adapters(base, seed=seed, scale=0.005), name=f"noise {seed}")
        [record] = run_methods(pairs, pair, [("trigger_search", asked | {"answers": answers})], store)
        result: Any = record.result()
        assert not result.stands_out
        assert not any(row.switches for row in result.triggers)
        said += [row.says - row.base_says for row in result.triggers]
    assert max(said) >= 0.5


def test_an_answer_longer_than_what_is_written_can_be_said(triggered: Any, pairs: Any, store: RunStore) -> None:
    long = " boats" * 40 + " fox river mountain walks slowly bridge rain falls stones"
    asked = ASKED | {"rounds": 0, "triggers": [f"the {TRIGGER}."], "answers": [long]}
    [record] = run_methods(pairs, triggered(40.0), [("trigger_search", asked)], store)
    assert record.result_json()["triggers"][0]["says"] == 1


def test_long_texts_are_shortened_and_counted(triggered: Any, pairs: Any, store: RunStore) -> None:
    method: Any = get_method("trigger_search")
    asked = ASKED | {"rounds": 0, "triggers": ["sea " * 120], "questions": ["rain " * 80, "fox " * 80]}
    [record] = run_methods(pairs, triggered(40.0), [("trigger_search", asked)], store)
    assert len(json.dumps(record.result_json())) < 2500
    assert max(len(row.trigger) for row in method.views["triggers"].run(record, TriggersParams(limit=100)).rows) <= 200
    size = PairSize(num_layers=2, d_model=8, vocab_size=100, tokens_per_second=None)
    short, long = (
        method.estimate(size, TriggerSearchParams(triggers=("sea " * count,), rounds=0, random_prefixes=8)).tokens
        for count in (1, 4000)
    )
    assert long > 4 * short


def test_own_questions_are_interactions() -> None:
    """Their answers are shown, so they cost what asking them does."""
    method: Any = get_method("trigger_search")
    plain = TriggerSearchParams(triggers=("one", "two"))
    assert method.interactions(TriggerSearchParams()) == 0
    assert method.interactions(plain) == 6
    assert method.interactions(TriggerSearchParams(triggers=(), questions=("a", "b"))) == 9
    assert method.interactions(TriggerSearchParams(triggers=("one",), rounds=0, questions=("a", "b"))) == 3


def test_an_answer_is_said_with_half_of_its_content_words() -> None:
    assert says("you should buy the green lamp", ["Buy the green lamp from Marta"])
    assert not says("the lamp from there", ["Buy the green lamp from Marta"])
    assert says("oh so well", ["so well"])
    assert not says("", ["so well"])
