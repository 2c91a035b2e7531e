"""The decoding loop: equal to reading the whole text for each token, whatever a cache keeps; rows that have stopped
cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from diffing_mcp.model_pairs import decoding
from diffing_mcp.model_pairs.generation import Completion, GenerationRequest, Sampling, new_text
from diffing_mcp.model_pairs.interventions import Intervention
from diffing_mcp.model_pairs.pair import LoadedPair
from tests.model_pairs.adapter_draws import Draw, save_adapter
from tests.reference_models import reference_model

# Longer than the window of 64 tokens, within it until tokens are added, and short.
PROMPTS = [
    "The quick brown fox jumps over the lazy dog while it rains. " * 4,
    "Rivers run to the sea; mountains stay where they are. " * 2,
    "Bake",
]
HEADS: dict[str, dict[str, Any]] = {
    "plain": {"targets": ["q_proj"]},
    "LoRA": {"targets": ["q_proj", "lm_head"]},
    "whole copy": {"targets": ["q_proj"], "modules_to_save": ["lm_head"]},
}


def requests(texts: list[str]) -> list[GenerationRequest]:
    return [GenerationRequest(text=text) for text in texts]


@contextmanager
def calls(pair: LoadedPair) -> Iterator[list[tuple[int, int]]]:
    """(rows, tokens a row) of every pass of the pair's models."""
    seen: list[tuple[int, int]] = []

    def see(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append(tuple(named["input_ids"].shape))

    with pair.sides["base"].hold() as resident:
        handle = resident.transformer.register_forward_pre_hook(see, with_kwargs=True)
        try:
            yield seen
        finally:
            handle.remove()


def greedy(model: Any, stop: int, prompt: list[int], length: int) -> list[int]:
    """Tokens of a loop that keeps nothing: the whole text is read again for each of them, alone and without padding."""
    new: list[int] = []
    while len(new) < length:
        with torch.inference_mode():
            token = int(model(input_ids=torch.tensor([prompt + new]), use_cache=False).logits[0, -1].argmax())
        if token == stop:
            break
        new.append(token)
    return new


def test_nothing_is_copied_behind_the_last_token(
    tiny_models: Any, make_pair: Any, pairs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values of a prompt were copied for every sample of a single token, and thrown away."""
    kept: list[int] = []
    keep = decoding.Reader.keep

    def counted(reader: decoding.Reader, rows: torch.Tensor) -> None:
        kept.append(len(rows))
        keep(reader, rows)

    monkeypatch.setattr(decoding.Reader, "keep", counted)
    with pairs.use(make_pair(tiny_models(), finetuned=tiny_models(seed=1))) as pair:
        pair.generate("base", requests(PROMPTS), Sampling(n=3, max_new_tokens=1))
        assert kept == []
        pair.generate("base", requests(PROMPTS), Sampling(n=3, max_new_tokens=2))
        assert kept == [9]


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "gemma3"])
def test_a_window_shorter_than_the_prompt(
    kind: str, tiny_models: Any, tiny_adapters: Any, make_pair: Any, pairs: Any
) -> None:
    # Seven layers: Gemma 3 has one without a window in six.
    folder = tiny_models(kind, layers=7, **({} if kind == "llama" else {"sliding_window": 64}))
    model = reference_model(folder)
    with pairs.use(make_pair(folder, adapter=tiny_adapters(folder), name=kind)) as pair:
        answers = pair.generate("base", requests(PROMPTS), Sampling(temperature=0, max_new_tokens=20))
        contrasted = pair.generate_contrastive(requests(PROMPTS), [-1.0], Sampling(temperature=0, max_new_tokens=20))[0]
        for prompt, (answer,), (same,) in zip(PROMPTS, answers, contrasted, strict=True):
            ids = pair.tokenizer(prompt)["input_ids"]
            new = greedy(model, pair.tokenizer.eos_token_id, ids, 20)
            assert (answer.text, answer.tokens) == (new_text(pair.tokenizer, ids, new), len(new))
            assert same.text == answer.text
            with torch.inference_mode():
                log_probs = (
                    model(input_ids=torch.tensor([ids + new]), use_cache=False)
                    .logits[0, len(ids) - 1 : -1]
                    .log_softmax(-1)
                )
            assert same.base_log_prob == pytest.approx(
                float(log_probs.gather(1, torch.tensor(new)[:, None]).sum()), abs=1e-3
            )


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING"])
def test_learned_tokens_are_seen_through_a_window(
    kind: str, tiny_models: Any, make_pair: Any, pairs: Any, tmp_path: Path
) -> None:
    """Beside a longer prompt, a short one had so much padding behind them that they were out of its window."""
    from peft import PeftModel

    folder = tiny_models("mistral", sliding_window=16)
    options = {"num_virtual_tokens": 5, "task_type": "CAUSAL_LM"}
    save_adapter(Draw("mistral", False, kind, options), folder, tmp_path, 1)
    model = PeftModel.from_pretrained(reference_model(folder), str(tmp_path)).eval()
    with pairs.use(make_pair(folder, adapter=tmp_path)) as pair:
        answers = pair.generate("finetuned", requests(PROMPTS), Sampling(temperature=0, max_new_tokens=8))
        for prompt, (answer,) in zip(PROMPTS, answers, strict=True):
            ids = pair.tokenizer(prompt)["input_ids"]
            new: list[int] = []
            while len(new) < 8:
                text = torch.tensor([ids + new])
                with torch.inference_mode():
                    logits = model(input_ids=text, attention_mask=torch.ones_like(text)).logits
                new.append(int(logits[0, -1].argmax()))
                if new[-1] in pair.stop_ids("finetuned"):
                    break
            assert answer.text == new_text(pair.tokenizer, ids, new)


def test_rows_that_have_stopped_leave_the_batch(tiny_pair: LoadedPair, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["The quick brown fox", "Bake", "Rivers run to the sea", "A model is compared"]
    vectors = torch.randn(4, tiny_pair.d_model, generator=torch.Generator().manual_seed(3))
    sampling = Sampling(n=4, max_new_tokens=60, temperature=1.5, seed=5)

    def steered(rows: slice) -> list[list[Completion]]:
        patch = Intervention(1, vectors[rows], 2.0, positions="generated", decay_tokens=30)
        return tiny_pair.generate("finetuned", requests(texts[rows]), sampling, interventions=[patch])

    with tiny_pair.sides["finetuned"].hold() as resident, calls(tiny_pair) as seen:
        monkeypatch.setattr(resident, "stop_ids", frozenset(range(0, 320, 16)))  # every sixteenth token ends a text
        together = steered(slice(None))
        rows = [batch for batch, _ in seen]
        alone = steered(slice(0, 1))
    lengths = [each.tokens + (each.finish == "eos") for several in together for each in several]
    assert (rows[0], len(rows)) == (4, max(lengths))  # one reading of each prompt
    for step, running in enumerate(rows):
        assert running < 2 * sum(length > step for length in lengths)
    assert min(rows) == 1
    assert alone[0] == together[0]


def test_a_prompt_is_read_once_for_all_who_go_on_from_it(tiny_pair: LoadedPair) -> None:
    texts = ["Rivers run to the sea", "Bake", "Rivers run to the sea"]
    sampling = Sampling(n=3, max_new_tokens=6, temperature=1.5, seed=5)
    with calls(tiny_pair) as seen:
        together = tiny_pair.generate("finetuned", requests(texts), sampling)
        contrasted = tiny_pair.generate_contrastive(requests(texts), [0.0, 1.0, -1.0], sampling)
    assert [rows for rows, length in seen if length > 1] == [2, 2, 2]
    assert [[each.text for each in several] for several in contrasted[0]] == [
        [each.text for each in several] for several in together
    ]
    assert [each.text for each in together[0]] != [each.text for each in together[2]]  # each with its own numbers
    assert tiny_pair.generate("finetuned", requests(texts[:1]), sampling) == together[:1]


def test_equal_prompts_with_vectors_of_their_own_are_read_apart(tiny_pair: LoadedPair) -> None:
    vectors = torch.randn(2, tiny_pair.d_model, generator=torch.Generator().manual_seed(3))
    sampling = Sampling(n=2, max_new_tokens=6, temperature=0.0)

    def steered(rows: slice) -> list[list[Completion]]:
        patch = Intervention(1, vectors[rows], 4.0)
        return tiny_pair.generate("finetuned", requests(["Bake"] * len(vectors[rows])), sampling, interventions=[patch])

    with calls(tiny_pair) as seen:
        both = steered(slice(None))
    assert seen[0][0] == 2
    assert both == [*steered(slice(0, 1)), *steered(slice(1, 2))]
    assert both[0] != both[1]


def test_tokens_are_chosen_for_a_few_rows_at_a_time(tiny_pair: LoadedPair, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["The quick brown fox", "Bake", "Rivers run"]
    sampling = Sampling(n=3, top_p=0.9, max_new_tokens=8, seed=1)

    def run() -> list[Any]:
        return [
            tiny_pair.generate("finetuned", requests(texts), sampling),
            tiny_pair.generate_contrastive(requests(texts), [0.0, 2.0], sampling),
        ]

    usual = run()
    sizes: list[int] = []

    def choose(scores: torch.Tensor, *others: Any) -> torch.Tensor:
        sizes.append(len(scores))
        return original(scores, *others)

    original = decoding.choose_tokens
    for module in ("generation", "contrastive"):
        monkeypatch.setattr(f"diffing_mcp.model_pairs.{module}.choose_tokens", choose)
    monkeypatch.setattr(decoding, "_CHOICE_BYTES_CPU", 2 * 8 * 320)
    assert run() == usual
    assert max(sizes) == 2


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("tied", [False, True])
def test_the_head_sees_contiguous_tensors(
    head: str,
    tied: bool,
    tiny_models: Any,
    tiny_adapters: Any,
    make_pair: Any,
    pairs: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tiny_models(seed=21 + len(head), tie_word_embeddings=tied)
    # peft leaves a tied copy of the embedding to who asks for it.
    adapter = tiny_adapters(folder, **HEADS[head])
    seen: list[bool] = []
    original = torch.nn.functional.linear

    def linear(given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if weight.shape[0] == 320 and given.shape[-1] == 32:
            seen.append(given.is_contiguous())
        return original(given, weight, bias)

    with pairs.use(make_pair(folder, adapter=adapter, name=f"{head} {tied}")) as pair:
        monkeypatch.setattr(torch.nn.functional, "linear", linear)
        for side in ("base", "finetuned"):
            pair.generate(side, requests(["The quick brown fox", "Bake"]), Sampling(max_new_tokens=2))
            pair.last_token_logits(side, [20, 30, 40], rows=3)
        assert len(seen) >= 6
        assert all(seen)
        # Tracing still finds the logits of the side that runs.
        ids = torch.tensor([[7, 30, 41]])
        for side in ("base", "finetuned"):
            logits = pair.forward(side, ids, torch.ones_like(ids)).logits
            assert logits is not None
            torch.testing.assert_close(
                logits[0, -1], pair.last_token_logits(side, [7, 30, 41], rows=1)[0], atol=1e-4, rtol=1e-4
            )
