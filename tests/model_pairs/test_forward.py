"""Forward passes against plain transformers models, on every architecture, with padding on either side."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from model_pairs.interventions import Intervention
from organisms.errors import InvalidInput
from tests.conftest import lora_delta

ARCHITECTURES = ["llama", "qwen2", "qwen3", "mistral", "olmo2", "phi3", "gemma2", "gemma3", "gpt2", "gpt_neox"]
TOKENS = torch.tensor([[7, 30, 41, 52, 63, 74]])


def reference(folder, ids):
    """Logits and hidden states (embeddings first) of the plain model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        out = model(input_ids=ids, output_hidden_states=True)
    return out.logits, out.hidden_states


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_forward_and_padding_on_every_architecture(kind, tiny_models, tiny_adapters, make_pair, pairs):
    folder = tiny_models(kind)
    logits, hidden = reference(folder, TOKENS)
    pad = torch.zeros(1, 3, dtype=torch.long)
    with pairs.use(make_pair(folder, adapter=tiny_adapters(folder), name=kind)) as pair:
        plain = pair.forward("base", TOKENS, torch.ones_like(TOKENS), layers=[0, 1])
        torch.testing.assert_close(plain.logits, logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(plain.hidden[0], hidden[1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(plain.hidden[1], hidden[2], atol=1e-4, rtol=1e-4)
        finetuned = pair.forward("finetuned", TOKENS, torch.ones_like(TOKENS), layers=[1])
        assert (finetuned.logits - logits).abs().max() > 1e-2
        for side, unpadded in (("base", plain), ("finetuned", finetuned)):
            left = pair.forward(side, torch.cat([pad, TOKENS], 1), torch.tensor([[0] * 3 + [1] * 6]), layers=[1])
            right = pair.forward(side, torch.cat([TOKENS, pad], 1), torch.tensor([[1] * 6 + [0] * 3]), layers=[1])
            torch.testing.assert_close(left.logits[:, 3:], unpadded.logits, atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(right.logits[:, :6], unpadded.logits, atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(left.hidden[1][:, 3:], unpadded.hidden[1], atol=1e-3, rtol=1e-3)
        again = pair.forward("base", TOKENS, torch.ones_like(TOKENS), layers=[1])
        assert torch.equal(again.logits, plain.logits)
