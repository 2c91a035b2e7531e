"""Two adapters on one base as the two sides of a pair, on layers that peft holds both adapters in: GPT-2's transposed
ones, DoRA, embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffing_mcp.model_pairs.modules import oriented
from diffing_mcp.model_pairs.residency import ModelPairs
from tests.model_pairs.adapter_draws import Draw, save_adapter

IDS = torch.tensor([[7, 30, 41, 5, 63, 74, 100, 9, 12, 200]])
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "transposed layers": ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "DoRA": ("llama", {"target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    "embeddings": ("llama", {"target_modules": ["embed_tokens"]}),
    "a bias": ("qwen2", {"target_modules": ["q_proj"], "lora_bias": True, "init_lora_weights": False}),
}


def merged(base: Path, adapter: Path) -> Any:
    """The model with an adapter in its weights, by transformers and peft alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(plain, str(adapter)).merge_and_unload().eval()


@pytest.mark.parametrize("case", CASES)
def test_layers_that_hold_both_adapters_are_told_apart(
    case: str, tiny_models: Callable[..., Path], make_pair: Callable[..., Any], tmp_path: Path
) -> None:
    family, options = CASES[case]
    base = tiny_models(family, tie_word_embeddings=False)
    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(folders):
        save_adapter(Draw(family, False, "LORA", {"r": 2, **options}), base, folder, seed)
    one, two = (merged(base, folder) for folder in folders)
    before, after = one.state_dict(), two.state_dict()
    with ModelPairs().use(make_pair(base, adapter=folders[1], base_adapter=folders[0])) as pair:
        found = {f"{delta.place.name}.{delta.parameter}": delta.delta for delta in pair.weight_deltas()}
        for name, delta in found.items():
            change = after[name] - before[name]
            expected = oriented(one.get_submodule(name.rpartition(".")[0]), change)
            values = (
                torch.zeros(expected.shape)
                if delta is None
                else delta
                if isinstance(delta, torch.Tensor)
                else delta.dense()
            )
            torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-4)
        changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert changed == {name for name, delta in found.items() if delta is not None}
        for weight in (1.0, 2.0, -0.5):
            one.load_state_dict(
                {
                    name: value + weight * (after[name] - value)
                    for name, value in merged(base, folders[0]).state_dict().items()
                }
            )
            with torch.inference_mode():
                expected = one(IDS).logits
            logits = pair.amplified(weight).forward("finetuned", IDS, torch.ones_like(IDS)).logits
            assert logits is not None
            torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-3)
