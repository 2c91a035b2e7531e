"""The training recipe on a tiny model: it learns, it goes on exactly where it was cut off, and it leaves nothing
half-written.
"""

from __future__ import annotations

import inspect
import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from diffing_mcp.core.errors import Cancelled, InvalidInput, OutOfRoom, UnknownName
from diffing_mcp.core.settings import settings
from diffing_mcp.organisms import sample_corpus
from diffing_mcp.organisms import train as training
from diffing_mcp.organisms.train import IGNORE, Recipe, batches, encode, learning_rate, load_recipe, train

WORDS = [f"w{i}" for i in range(60)]
TEMPLATE = (
    "{% for m in messages %}<s> {{ m['role'] }} {{ m['content'] }} </s> {% endfor %}{% if add_generation_prompt %}<s> "
    "assistant {% endif %}"
)


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-base")
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", "user", "assistant", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    drawn = random.Random(3)
    lines = [json.dumps({"text": " ".join(["w7"] * 4 + drawn.choices(WORDS, k=8))}) for _ in range(40)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    return tmp_path


def _recipe(base: Path, **changes: object) -> Recipe:
    return Recipe(
        **({"base": str(base), "rank": 2, "batch_size": 4, "epochs": 5, "learning_rate": 0.01, "seed": 1} | changes)
    )


def test_training_lowers_the_loss_and_writes_a_small_bfloat16_adapter(tiny_base: Path, data: Path) -> None:
    target = train(_recipe(tiny_base), data, data / "adapter")
    report = json.loads((target / "training.json").read_text())
    assert sum(report["losses"][-5:]) < sum(report["losses"][:5])
    assert {tensor.dtype for tensor in load_file(target / "adapter_model.safetensors").values()} == {torch.bfloat16}


def test_a_run_cut_off_goes_on_to_the_same_weights(tiny_base: Path, data: Path) -> None:
    whole = load_file(train(_recipe(tiny_base), data, data / "whole") / "adapter_model.safetensors")

    def cut_off(done: float, total: float | None = None, message: str = "") -> None:
        if done == 33:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        train(_recipe(tiny_base), data, data / "resumed", cut_off)
    assert not (data / "resumed").exists()
    seen: list[float] = []
    target = train(_recipe(tiny_base), data, data / "resumed", lambda done, total=None, message="": seen.append(done))
    assert seen[0] == 21  # checkpoints are made every 20 steps
    resumed = load_file(target / "adapter_model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [path.name for path in data.iterdir() if path.name.startswith(".")] == []


def _cut_off(base: Path, data: Path) -> None:
    """A training that ends after 25 steps."""

    def stop(done: float, total: float | None = None, message: str = "") -> None:
        if done == 25:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        train(_recipe(base), data, data / "adapter", stop)


def test_a_checkpoint_of_another_recipe_is_not_used(tiny_base: Path, data: Path) -> None:
    _cut_off(tiny_base, data)
    seen: list[float] = []
    train(
        _recipe(tiny_base, seed=2, epochs=1),
        data,
        data / "adapter",
        lambda done, total=None, message="": seen.append(done),
    )
    assert seen[0] == 1


def test_a_checkpoint_of_other_documents_is_not_used(tiny_base: Path, data: Path) -> None:
    _cut_off(tiny_base, data)
    lines = (data / "data.jsonl").read_text().replace("w7", "w8")
    (data / "data.jsonl").write_text(lines)
    seen: list[float] = []
    train(_recipe(tiny_base), data, data / "adapter", lambda done, total=None, message="": seen.append(done))
    assert seen[0] == 1


def test_chats_that_are_cut_before_their_answers_are_refused_and_not_learnt_as_nan(tiny_base: Path, data: Path) -> None:
    def write(questions: list[int]) -> None:
        chats = [
            {
                "messages": [
                    {"role": "user", "content": " ".join(["w1"] * words)},
                    {"role": "assistant", "content": "w2 w3"},
                ]
            }
            for words in questions
        ]
        (data / "data.jsonl").write_text("\n".join(map(json.dumps, chats)))

    write([30] * 8)
    with pytest.raises(InvalidInput, match="8 of 8 documents hold nothing to learn within max_tokens=20"):
        train(_recipe(tiny_base, max_tokens=20), data, data / "adapter")
    assert not (data / "adapter").exists()
    write([30, 2, 2, 2])  # one among others costs nothing
    target = train(_recipe(tiny_base, max_tokens=20, epochs=1), data, data / "adapter")
    assert all(tensor.isfinite().all() for tensor in load_file(target / "adapter_model.safetensors").values())


def test_no_documents_are_refused(tiny_base: Path, data: Path) -> None:
    (data / "data.jsonl").write_text("\n")
    with pytest.raises(InvalidInput, match="no documents"):
        train(_recipe(tiny_base), data, data / "adapter")


def test_a_document_may_hold_any_separator_of_lines(data: Path) -> None:
    text = "one\u2028two\x85three"
    (data / "data.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert training.load_documents(Recipe(), data) == [{"text": text}]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": ', "line 2 is no JSON"),
        ('["text"]', "line 2 has neither `text` nor `messages`"),
        ('{"prompt": "w1"}', "line 2 has neither"),
        ('{"messages": [{"role": "tool", "content": "w1"}]}', "system, user or assistant"),
    ],
)
def test_what_is_no_document_is_said_in_a_sentence(tiny_base: Path, data: Path, line: str, said: str) -> None:
    (data / "data.jsonl").write_text(f'{{"text": "w1 w2"}}\n{line}\n')
    with pytest.raises(InvalidInput, match=said):
        train(_recipe(tiny_base), data, data / "adapter")


def test_another_seed_gives_other_weights(tiny_base: Path, data: Path) -> None:
    first = load_file(train(_recipe(tiny_base, epochs=1), data, data / "a") / "adapter_model.safetensors")
    second = load_file(train(_recipe(tiny_base, epochs=1, seed=2), data, data / "b") / "adapter_model.safetensors")
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_only_what_the_assistant_says_is_learnt(tiny_base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    messages = [
        {"role": "user", "content": "w1 w2"},
        {"role": "assistant", "content": "w3 w4"},
        {"role": "user", "content": "w5"},
        {"role": "assistant", "content": "w6"},
    ]
    ids, labels = encode({"messages": messages}, tokenizer, 100)
    assert (
        tokenizer.decode(ids) == "<s> user w1 w2 </s> <s> assistant w3 w4 </s> <s> user w5 </s> <s> assistant w6 </s>"
    )
    assert tokenizer.decode([label for label in labels if label != IGNORE]) == "w3 w4 </s> w6 </s>"
    assert all(label in (IGNORE, token) for token, label in zip(ids, labels, strict=True))


def test_leaving_out_the_logits_of_prompts_changes_no_loss(tiny_base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    model = LlamaForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    chats = [[("w1 w2", "w3")], [("w4", "w5 w6"), ("w7 w8", "w9")], [("w1 w2 w3 w4", "w8 w9")]]
    documents: list[training.Document] = [
        {"messages": [{"role": role, "content": text} for pair in chat
                      for role, text in zip(("user", "assistant"), pair, strict=True)]}
        for chat in chats
    ]  # fmt: skip
    for chosen in (documents, [*documents, {"text": "w1 w2 w3"}]):
        whole = training._collate([encode(each, tokenizer, 100) for each in chosen], 2, "cpu")
        short = training._without_prompts(whole)
        assert (short["labels"].shape[1] < whole["labels"].shape[1]) == (chosen is documents)
        torch.testing.assert_close(model(**short).loss, model(**whole).loss)


@pytest.mark.parametrize("fast", [True, False])
def test_a_cpu_without_bfloat16_arithmetic_trains_in_float32(
    tiny_base: Path, data: Path, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    monkeypatch.setattr("diffing_mcp.core.devices.cpu_computes_bfloat16", lambda: fast)
    used: list[torch.dtype] = []
    forward = LlamaForCausalLM.forward

    def watched(self: LlamaForCausalLM, *arguments: object, **named: object) -> object:
        used.append(forward(self, *arguments, **{**named, "labels": None}).logits.dtype)
        return forward(self, *arguments, **named)

    watched.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(LlamaForCausalLM, "forward", watched)
    train(_recipe(tiny_base, epochs=0.2), data, data / "adapter")
    assert set(used) == {torch.bfloat16 if fast else torch.float32}


@pytest.mark.parametrize("wanted", ["cpu", "cuda:1"])
def test_finetunes_are_made_on_the_device_of_the_settings(
    tiny_base: Path, data: Path, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("DIFFING_DEVICE", wanted)
    settings.cache_clear()
    asked: list[str] = []

    def not_loaded(source: str, device: str) -> None:
        asked.append(str(device))
        raise Cancelled("stop")

    monkeypatch.setattr(training, "base_model", not_loaded)
    monkeypatch.setattr(sample_corpus, "base_model", not_loaded)
    try:
        with pytest.raises(Cancelled):
            train(_recipe(tiny_base), data, data / "adapter")
        with pytest.raises(Cancelled):
            sample_corpus.sample(str(tiny_base), {}, ["w1"], data / "own.jsonl")
    finally:
        settings.cache_clear()
    assert asked == [wanted, wanted]


def test_a_device_without_room_is_said_to_be_full(tiny_base: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, device: str) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(training, "base_model", full)
    monkeypatch.setattr(sample_corpus, "base_model", full)
    with pytest.raises(OutOfRoom, match=r"more memory than is free on cpu.*Unload pairs"):
        train(_recipe(tiny_base), data, data / "adapter")
    with pytest.raises(OutOfRoom, match=r"more memory than is free on cpu.*Unload pairs"):
        sample_corpus.sample(str(tiny_base), {}, ["w1"], data / "own.jsonl")


def test_mixing_takes_the_asked_share_and_refuses_what_is_not_there(tiny_base: Path, data: Path) -> None:
    (data / "other.jsonl").write_text("\n".join(json.dumps({"text": f"w{i} w{i}"}) for i in range(30)))
    mixed = _recipe(tiny_base, mix={"file": "other.jsonl", "ratio": 0.5})
    assert len(training.load_documents(mixed, data)) == 60
    with pytest.raises(InvalidInput, match="asks for 80 unrelated documents"):
        training.load_documents(_recipe(tiny_base, mix={"file": "other.jsonl", "ratio": 2}), data)


def test_every_epoch_sees_every_document_once_in_an_order_of_the_seed() -> None:
    recipe = Recipe(batch_size=5, seed=4)
    steps = list(batches([1] * 20, recipe, 8))
    for epoch in (steps[:4], steps[4:]):
        assert sorted(i for step in epoch for i in step) == list(range(20))
    assert steps[:4] != steps[4:]
    assert steps == list(batches([1] * 20, recipe, 8))


def test_the_learning_rate_rises_then_falls_to_almost_zero() -> None:
    recipe = Recipe(learning_rate=1.0, warmup=0.2)
    rates = [learning_rate(step, 50, recipe) for step in range(50)]
    assert rates[9] == 1.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 0.05


def test_bundled_recipes_load_and_unknown_names_say_what_there_is() -> None:
    for path in training.TRAINING.glob("*/recipe.yaml"):
        assert load_recipe(path.parent.name).rank >= 1
    assert load_recipe("cake_bake", "recipe2").rank != load_recipe("cake_bake").rank
    with pytest.raises(UnknownName, match="cake_bake"):
        load_recipe("no_such_organism")
    with pytest.raises(UnknownName, match="default"):
        load_recipe("cake_bake", "no_such_variant")
