"""Memory of generation: estimated from the configuration, held against what is free, and never a change of
the texts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from diffing_mcp.core.errors import OutOfRoom
from diffing_mcp.model_pairs import room
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
from diffing_mcp.model_pairs.room import RowCost, most_rows, row_cost

SHAPE: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
COST = RowCost(logits=1000, cached=((10, None), (30, 64)), token=100, token_pair=2)


def test_keys_and_values_of_a_configuration() -> None:
    # 2 (keys, values) x 2 heads x 16 numbers x 2 bytes = 128 bytes a layer and token.
    full = row_cost(transformers.LlamaConfig(**SHAPE), 1000, 2)
    assert full.cache(100) == 6 * 128 * 100
    assert row_cost(transformers.LlamaConfig(**SHAPE), 1000, 4).cache(100) == 2 * full.cache(100)
    # Gemma 3 has one layer in six that sees everything; the others keep their window.
    windowed = row_cost(transformers.Gemma3TextConfig(**SHAPE, sliding_window=64), 1000, 2)
    assert (windowed.cache(50), windowed.cache(100)) == (6 * 128 * 50, 128 * 100 + 5 * 128 * 64)
    assert (
        row_cost(transformers.GPT2Config(vocab_size=1000, n_embd=64, n_layer=6, n_head=4), 1000, 2).cache(100)
        == 6 * 2 * 64 * 2 * 100
    )
    assert row_cost(transformers.LlamaConfig(**SHAPE), 262_144, 2).logits - full.logits == 8 * (262_144 - 1000)


def test_the_cache_of_a_real_pass_is_as_large(tiny_models: Any) -> None:
    for kind in ("llama", "gemma3", "gemma4", "gpt2", "phi3"):
        model = transformers.AutoModelForCausalLM.from_pretrained(tiny_models(kind, layers=7), dtype=torch.float32)
        ids = torch.full((1, 90), 7)
        with torch.inference_mode():
            cache = model(input_ids=ids, use_cache=True).past_key_values
            cache = model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True).past_key_values
        held = sum(part.numel() * part.itemsize for layer in cache.layers for part in (layer.keys, layer.values))
        # A window of 64 keeps the 63 tokens that the next one sees.
        assert row_cost(model.config, model.config.vocab_size, 4).cache(91) == pytest.approx(held, rel=0.02)


def test_the_pass_over_the_prompt_or_the_last_token_is_the_highest() -> None:
    assert COST.bytes(100, 1) == 1000 + 10 * 100 + 30 * 64 + 100 * 100 + 2 * 100 * 100
    assert COST.bytes(1, 999) == 1000 + 10 * 1000 + 30 * 64 + 30 * 1000


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 10**9))
def test_as_many_rows_as_fit(prompt: int, new: int, free: int) -> None:
    each = 2 * COST.bytes(prompt, new)
    if each > free:
        with pytest.raises(
            OutOfRoom, match=rf"{prompt} prompt tokens and up to {new} new ones.*max_new_tokens.*memory_share"
        ):
            most_rows([COST, COST], prompt, new, free)
    else:
        rows = most_rows([COST, COST], prompt, new, free)
        assert rows * each <= free < (rows + 1) * each


def test_little_memory_makes_small_batches_of_the_same_texts(tiny_pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [GenerationRequest(text=text) for text in ("The quick brown fox", "Bake", "Rivers run to the sea")]
    sampling = Sampling(n=4, max_new_tokens=8, seed=2)

    def run() -> tuple[list[Any], list[int]]:
        sizes: list[int] = []
        with tiny_pair.sides["base"].hold() as resident:
            see = resident.transformer.register_forward_pre_hook(
                lambda module, args, named: sizes.append(len(named["input_ids"])), with_kwargs=True
            )
            try:
                return [
                    tiny_pair.generate("finetuned", requests, sampling),
                    tiny_pair.generate_contrastive(requests, [1.0], sampling),
                ], sizes
            finally:
                see.remove()

    def texts_of(found: list[Any]) -> list[Any]:  # log-probabilities differ in their last digits with the padding
        plain, contrastive = found
        return [plain, [[each.text for each in several] for several in contrastive[0]]]

    usual, sizes = run()
    assert max(sizes) == 12
    with tiny_pair.sides["base"].hold() as resident:
        one = room.cost_of(resident).bytes(20, 8)
    monkeypatch.setattr("diffing_mcp.model_pairs.generation.free_bytes", lambda devices: 5 * one)
    texts, sizes = run()
    assert texts_of(texts) == texts_of(usual)
    assert 1 < max(sizes) < 12
    monkeypatch.setattr("diffing_mcp.model_pairs.generation.free_bytes", lambda devices: 100)
    before = tiny_pair.forwards.copy()
    for call in (
        lambda: tiny_pair.generate("base", requests, sampling),
        lambda: tiny_pair.generate_contrastive(requests, [1.0], sampling),
    ):
        with pytest.raises(OutOfRoom, match=r"0\.00 MB are free"):
            call()
    assert tiny_pair.forwards == before  # refused before the first pass


def test_a_control_group_limits_what_is_free(tmp_path: Path, tiny_pair: Any) -> None:
    assert room.free_in_group(tmp_path) > 1 << 60
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    assert room.free_in_group(tmp_path) > 1 << 60
    (tmp_path / "memory.max").write_text("1000\n")
    assert room.free_in_group(tmp_path) == 300
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 120\nactive_file 30\n")
    assert room.free_in_group(tmp_path) == 450
    with tiny_pair.sides["base"].hold() as resident:
        assert 0 < room.free_bytes(room.devices_of(resident)) < 1 << 60


def test_logits_of_a_batch_stay_within_their_bytes() -> None:
    assert room.logit_tokens(49_152, 2) == room.logit_tokens(49_152, 4) == 2048  # the setting batch_tokens
    assert (room.logit_tokens(262_144, 2), room.logit_tokens(262_144, 4)) == (1024, 512)
    room.check_logits(1024, 262_144, 2, 2**30)
    with pytest.raises(OutOfRoom, match=r"1024 tokens take 1,024 MB.*max_tokens"):
        room.check_logits(1024, 262_144, 2, 2**30 - 1)


def test_texts_are_scored_a_few_at_a_time(tiny_pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.randint(5, 300, (5, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    logits = tiny_pair.forward("base", ids, mask).logits
    expected = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2) * mask[:, 1:]
    usual = tiny_pair.token_log_probs("base", ids, mask)
    torch.testing.assert_close(usual, expected, atol=1e-5, rtol=1e-5)
    before = tiny_pair.forwards.copy()
    monkeypatch.setattr(room, "LOGIT_BYTES", 2 * 12 * 4 * tiny_pair.vocab_size)
    monkeypatch.setattr("diffing_mcp.model_pairs.forward._ROW_BYTES", 3 * 4 * tiny_pair.vocab_size)
    torch.testing.assert_close(tiny_pair.token_log_probs("base", ids, mask), expected, atol=1e-5, rtol=1e-5)
    assert (tiny_pair.forwards - before).passes == 3
