"""Adapters at the edges: merged into tied weights, biases without matrices, learned tokens at the end of the context,
templates that change.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.model_pairs.fingerprint import pair_identity
from diffing_mcp.model_pairs.residency import ModelPairs
from tests.model_pairs.adapter_draws import Draw, peft_log_probs, save_adapter

TEXT = [7, 30, 41, 5, 63, 74, 100, 9, 12, 200]
MODULES = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """`save(base, kind="LORA", **options)` -> folder of an adapter with noise on everything that it trains."""

    def build(base: Path, kind: str = "LORA", **options: Any) -> Path:
        folder = tmp_path / f"adapter-{len(list(tmp_path.iterdir()))}"
        save_adapter(Draw("llama", True, kind, options), base, folder, 1)
        return folder

    return build


def log_probs(pair: Any, side: str) -> torch.Tensor:
    ids = torch.tensor([TEXT])
    return pair.forward(side, ids, torch.ones_like(ids)).logits[0].float().log_softmax(-1)


@pytest.mark.parametrize("module", ["lm_head", "embed_tokens"])
def test_a_merge_that_would_change_a_tied_weight_twice_is_refused(module, tiny_models, make_pair, save):
    """The trained model changes the head or the embedding; merged, the one weight of both changes in both places."""
    adapter = save(tiny_models(tie_word_embeddings=True), r=2, target_modules=[module])
    with (
        pytest.raises(InvalidInput, match="another model than the one that was trained"),
        ModelPairs().use(make_pair(tiny_models(tie_word_embeddings=True), adapter=adapter, merge=True)),
    ):
        pass
    untied = tiny_models(tie_word_embeddings=False)
    adapter = save(untied, r=2, target_modules=[module])
    with ModelPairs().use(make_pair(untied, adapter=adapter, merge=True)) as pair:
        torch.testing.assert_close(
            log_probs(pair, "finetuned"), peft_log_probs(untied, adapter, [TEXT])[0], atol=1e-4, rtol=1e-4
        )


def test_a_bias_acts_whatever_the_matrices_are(tiny_models, make_pair, save):
    base = tiny_models(tie_word_embeddings=True)
    adapter = save(base, r=2, target_modules=MODULES, lora_bias=True, init_lora_weights=False)
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {name: value * 0 if ".lora_A" in name else value for name, value in tensors.items()},
        adapter / "adapter_model.safetensors",
    )
    with ModelPairs().use(make_pair(base, adapter=adapter)) as pair:
        torch.testing.assert_close(
            log_probs(pair, "finetuned"), peft_log_probs(base, adapter, [TEXT])[0], atol=1e-4, rtol=1e-4
        )


def test_learned_tokens_take_their_part_of_the_context(tiny_models, make_pair, save):
    base = tiny_models("gpt2")
    adapter = save(base, "PROMPT_TUNING", num_virtual_tokens=5, task_type="CAUSAL_LM")
    text = [7 + index % 300 for index in range(256)]
    with ModelPairs().use(make_pair(base, adapter=adapter)) as pair:
        assert pair.context_length == 251
        ids = torch.tensor([text])
        logits = pair.forward("finetuned", ids[:, :251], torch.ones(1, 251, dtype=torch.long)).logits
        assert logits is not None
        torch.testing.assert_close(
            logits[0].log_softmax(-1), peft_log_probs(base, adapter, [text[:251]])[0], atol=1e-4, rtol=1e-4
        )
        with pytest.raises(InvalidInput, match="256 tokens; this model's context holds 251"):
            pair.forward("finetuned", ids, torch.ones_like(ids))


def test_a_template_beside_the_adapter_is_part_of_what_a_run_is(tiny_models, make_pair, save):
    base = tiny_models(tie_word_embeddings=True)
    adapter = save(base, r=2, target_modules=MODULES)
    identities = []
    for words in ("[{{ messages[0].content }}]", "<{{ messages[0].content }}>"):
        (adapter / "chat_template.jinja").write_text(words)
        identities.append(pair_identity(make_pair(base, adapter=adapter)))
    assert identities[0]["finetuned"] != identities[1]["finetuned"]
    assert identities[0]["base"] == identities[1]["base"]


@pytest.mark.parametrize("limit", [None, 250_000])
def test_an_adapter_with_fewer_rows_than_its_base(limit, tiny_models, make_pair, tmp_path):
    """A base with padded rows, and an adapter that was trained after cutting them off; also where the sides are loaded
    in turn.
    """
    import shutil

    from transformers import AutoModelForCausalLM

    base = tiny_models(vocabulary=352)
    cut: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    cut.resize_token_embeddings(320, mean_resizing=False)
    cut.save_pretrained(tmp_path / "cut")
    for file in base.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "cut")
    options = {"r": 2, "target_modules": [*MODULES, "embed_tokens"], "modules_to_save": ["lm_head"]}
    save_adapter(Draw("llama", False, "LORA", options), tmp_path / "cut", tmp_path / "adapter", 1)
    with ModelPairs(limit).use(make_pair(base, adapter=tmp_path / "adapter")) as pair:
        assert pair.sequential is (limit is not None)
        assert pair.vocab_size == 320
        (expected,) = peft_log_probs(tmp_path / "cut", tmp_path / "adapter", [TEXT])
        torch.testing.assert_close(log_probs(pair, "finetuned"), expected, atol=1e-4, rtol=1e-4)
        expected = peft_log_probs(base, None, [TEXT])[0][:, :320].log_softmax(-1)
        torch.testing.assert_close(log_probs(pair, "base"), expected, atol=1e-4, rtol=1e-4)
