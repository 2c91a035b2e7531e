"""Generation: only new text, the same for the same call, whatever else is in the batch; steering reaches
every token.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from diffing_mcp.core.chat import ChatMessage
from diffing_mcp.core.errors import Cancelled, InvalidInput
from diffing_mcp.model_pairs import generation
from diffing_mcp.model_pairs.decoding import choose_tokens
from diffing_mcp.model_pairs.generation import GenerationRequest, Row, Sampling, batches_of, new_text
from diffing_mcp.model_pairs.interventions import Intervention

TEXTS = ["The quick brown fox", "Bake", "Rivers run to the sea; mountains stay where they are and"]
GREEDY = Sampling(temperature=0, max_new_tokens=12)


def requests(texts=TEXTS):
    return [GenerationRequest(text=text) for text in texts]


def test_greedy_text_is_what_the_plain_model_says(tiny_pair):
    model = AutoModelForCausalLM.from_pretrained(tiny_pair.spec.base.files.id, dtype=torch.float32).eval()
    answers = tiny_pair.generate("base", requests(), GREEDY)
    for text, (answer,) in zip(TEXTS, answers, strict=True):
        ids = tiny_pair.tokenizer(text)["input_ids"]
        new: list[int] = []
        while len(new) < 12:
            with torch.no_grad():
                token = int(model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax())
            if token == tiny_pair.tokenizer.eos_token_id:
                break
            new.append(token)
        assert answer.tokens == len(new)
        assert answer.finish == ("length" if len(new) == 12 else "eos")
        assert answer.text == new_text(tiny_pair.tokenizer, ids, new)
        assert not answer.text.startswith(text)


def test_same_call_same_text_and_batch_does_not_matter(tiny_pair):
    sampling = Sampling(n=3, max_new_tokens=8, seed=11)
    first = tiny_pair.generate("finetuned", requests(), sampling)
    assert [len(each) for each in first] == [3, 3, 3]
    torch.manual_seed(99)
    assert tiny_pair.generate("finetuned", requests(), sampling) == first
    assert len({completion.text for completion in first[0]}) > 1
    assert tiny_pair.generate("finetuned", requests(TEXTS[:1]), sampling)[0] == first[0]
    other = tiny_pair.generate("finetuned", requests(), sampling.model_copy(update={"seed": 12}))
    assert other != first


def test_equal_models_draw_equal_answers(identical_pair):
    sampling = Sampling(n=2, max_new_tokens=8, top_p=0.9, seed=4)
    assert identical_pair.generate("base", requests(), sampling) == identical_pair.generate(
        "finetuned", requests(), sampling
    )


def test_sides_answer_differently(tiny_pair):
    assert tiny_pair.generate("base", requests(), GREEDY) != tiny_pair.generate("finetuned", requests(), GREEDY)


def test_chat_prefill_system_and_thinking(tiny_pair):
    messages = (ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="What is your name?"))
    plain = tiny_pair.render_chat(messages)
    assert plain == (
        "<|im_start|>system\n"
        "Be brief.<|im_end|>\n"
        "<|im_start|>user\n"
        "What is your name?<|im_end|>\n"
        "<|im_start|>assistant\n"
        "<think></think>"
    )
    assert tiny_pair.render_chat(messages, thinking=True).endswith("assistant\n")
    assert tiny_pair.has_thinking_switch
    prefilled = tiny_pair.render_chat(messages, prefill="I am")
    assert prefilled == plain + "I am"
    assert tiny_pair.render_chat((*messages, ChatMessage(role="assistant", content="I am"))) == prefilled
    (answer,) = tiny_pair.generate("base", [GenerationRequest(messages=messages, prefill="I am")], GREEDY)[0]
    assert not answer.text.startswith("I am")
    for wrong in ((), (messages[0],), (messages[1], messages[0], messages[1])):
        with pytest.raises(InvalidInput, match="message"):
            tiny_pair.render_chat(wrong)


def test_template_without_system_role(tiny_models, make_pair, pairs):
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif "
        "%}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    )
    spec = make_pair(tiny_models(), declared_identical=True)
    source = spec.base.model_copy(update={"files": spec.base.files.model_copy(update={"chat_template": template})})
    with pairs.use(spec.model_copy(update={"base": source, "finetuned": source})) as pair:
        messages = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Hi")]
        assert pair.render_chat(messages) == "<user>Be brief.\n\nHi<assistant>"


def test_prompts_that_do_not_fit(tiny_pair):
    with pytest.raises(InvalidInput, match=r"max_new_tokens is 12.*256"):
        tiny_pair.generate("base", requests(["word " * 300]), GREEDY)
    with pytest.raises(InvalidInput, match="empty"):
        tiny_pair.generate("base", requests([""]), GREEDY)
    with pytest.raises(ValueError, match="either"):
        GenerationRequest(messages=None, text=None)


def test_cancel_between_tokens(tiny_pair):
    calls = []

    def progress(done, total=None, message=""):
        calls.append((done, total))
        if len(calls) > 4:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        tiny_pair.generate("base", requests(), GREEDY, progress)
    assert len(calls) == 5
    assert calls[-1][1] == 36
    tiny_pair.generate("base", requests(), GREEDY)


def test_answers_are_told_while_they_are_written(tiny_pair, monkeypatch):
    monkeypatch.setattr(generation, "_SHOWN_EVERY_SECONDS", 0.0)
    told: dict[tuple[int, int], list[str]] = {}
    sampling = Sampling(n=2, max_new_tokens=12, seed=3)

    def written(request: int, sample: int, text: str) -> None:
        told.setdefault((request, sample), []).append(text)

    answers = tiny_pair.generate("finetuned", requests(), sampling, written=written)
    assert answers == tiny_pair.generate("finetuned", requests(), sampling)
    assert set(told) == {(request, sample) for request in range(3) for sample in range(2)}
    for (request, sample), texts in told.items():
        whole = answers[request][sample].text
        assert texts[-1] == whole.rstrip("\ufffd")
        assert [len(text) for text in texts] == sorted(len(text) for text in texts)
        assert len({text for text in texts if text and whole.startswith(text)}) >= 2


def test_steering_reaches_every_generated_token(tiny_pair):
    # A vector along an unembedding row, large enough to drown everything else, makes the model say that token for ever.
    token = 100
    with tiny_pair.sides["base"].hold() as resident:
        row = resident.transformer.get_output_embeddings().weight[token].clone()
        norm = resident.standardized.ln_final._module.weight.clone()
    vector = row / norm
    ids = tiny_pair.tokenizer(TEXTS[0])["input_ids"]
    batch = torch.tensor([ids])
    last = tiny_pair.num_layers - 1
    lens = tiny_pair.logit_lens("base", vector)
    expected = int(lens.argmax())
    answer = tiny_pair.generate("base", requests(TEXTS[:1]), GREEDY, interventions=[Intervention(last, vector, 1e4)])[
        0
    ][0]
    assert answer.text == new_text(tiny_pair.tokenizer, ids, [expected] * 12)
    logits = tiny_pair.forward(
        "base", batch, torch.ones_like(batch), interventions=[Intervention(last, vector, 1e4)]
    ).logits
    assert int(logits[0, -1].argmax()) == expected
    # One vector a request: only the second is steered.
    vectors = torch.stack([torch.zeros_like(vector), 1e4 * vector, torch.zeros_like(vector)])
    steered = tiny_pair.generate("base", requests(), GREEDY, interventions=[Intervention(last, vectors)])
    plain = tiny_pair.generate("base", requests(), GREEDY)
    assert [a == b for a, b in zip(steered, plain, strict=True)] == [True, False, True]
    only_prompt = tiny_pair.generate(
        "base", requests(TEXTS[:1]), GREEDY, interventions=[Intervention(last, 1e4 * vector, positions="prompt")]
    )
    assert only_prompt[0][0].text != answer.text
    with pytest.raises(InvalidInput, match="2 vectors for 3 requests"):
        tiny_pair.generate("base", requests(), GREEDY, interventions=[Intervention(last, vectors[:2])])


def test_frequencies_follow_the_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    count = 40000
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen = choose_tokens(logits.expand(count, 4), 1.0, 1.0, uniform)
    torch.testing.assert_close(torch.bincount(chosen, minlength=4) / count, logits.softmax(0), atol=0.01, rtol=0)
    hot = choose_tokens(logits.expand(count, 4), 2.0, 1.0, uniform)
    torch.testing.assert_close(torch.bincount(hot, minlength=4) / count, (logits / 2).softmax(0), atol=0.01, rtol=0)
    kept = choose_tokens(logits.expand(count, 4), 1.0, 0.8, uniform)
    expected = torch.tensor([0.0, 1.0, 2.0, 0.0]).exp() * torch.tensor([0.0, 1.0, 1.0, 0.0])
    torch.testing.assert_close(torch.bincount(kept, minlength=4) / count, expected / expected.sum(), atol=0.01, rtol=0)


@settings(max_examples=100)
@given(st.integers(2, 3000), st.floats(0.01, 1.0), st.floats(0.05, 5.0), st.integers(0, 1000))
def test_top_p_never_leaves_the_smallest_set(size, top_p, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(3, size, generator=generator) * 3
    chosen = choose_tokens(scores, temperature, top_p, torch.rand(3, generator=generator, dtype=torch.float64))
    probabilities = (scores / temperature).softmax(-1)
    for row, token in zip(probabilities, chosen.tolist(), strict=True):
        assert float(row[row > row[token]].sum()) < top_p + 1e-5


@settings(max_examples=50)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=80), st.integers(1, 64), st.integers(1, 4000))
def test_batches_hold_every_row_once_within_the_limits(lengths, max_rows, max_tokens):
    rows = [Row([1] * length, index, 0) for index, length in enumerate(lengths)]
    batches = batches_of(rows, lambda prompt: max(1, min(max_rows, max_tokens // (prompt + 10))))
    assert sorted(row.request for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= max_rows
        assert len(batch) == 1 or len(batch) * (max(len(row.prompt) for row in batch) + 10) <= max_tokens
    for full in batches[:-1]:  # no batch ends early
        assert len(full) == max_rows or (len(full) + 1) * (len(full[0].prompt) + 10) > max_tokens


@settings(max_examples=60)
@given(prompt=st.text(min_size=1, max_size=30), answer=st.text(max_size=30))
def test_new_text_never_holds_the_prompt(tiny_pair, prompt, answer):
    ids = tiny_pair.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    new = tiny_pair.tokenizer(answer, add_special_tokens=False)["input_ids"]
    assert new_text(tiny_pair.tokenizer, ids, new) == tiny_pair.tokenizer.decode(new, skip_special_tokens=True)
