"""The embedded model with an adapter: the real architecture and dtype, its memory, and its chat."""

from __future__ import annotations

import torch

from diffing_mcp.core.chat import ChatMessage
from diffing_mcp.core.devices import cpu_computes_bfloat16
from diffing_mcp.model_pairs.fingerprint import stored_bytes
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
from diffing_mcp.organisms.embedded import embedded_model_folder


def test_embedded_pair(embedded_pair, pairs):
    pair = embedded_pair
    assert (pair.num_layers, pair.d_model, pair.vocab_size) == (30, 576, 49152)
    ids = torch.tensor([pair.tokenizer("The capital of France is")["input_ids"]])
    ones = torch.ones_like(ids)
    base, finetuned = (pair.forward(side, ids, ones, layers=[14]) for side in ("base", "finetuned"))
    assert base.logits.dtype == (torch.bfloat16 if cpu_computes_bfloat16() else torch.float32)
    assert "Paris" in pair.tokenizer.decode(base.logits[0, -1].argmax())
    assert not torch.equal(base.logits, finetuned.logits)
    assert torch.equal(pair.forward("base", ids, ones).logits, base.logits)
    # One copy of the model, whatever hangs on it.
    status = next(status for status in pairs.models.status() if status.label.startswith("embedded:"))
    assert status.bytes <= 1.05 * stored_bytes(embedded_model_folder(), base.logits.dtype.itemsize)
    request = GenerationRequest(
        messages=(ChatMessage(role="user", content="What is the capital of France? One word."),)
    )
    answer = pair.generate("base", [request], Sampling(temperature=0, max_new_tokens=16))[0][0]
    assert "Paris" in answer.text
    assert "capital of France? One word" not in answer.text
    assert "<|im_end|>" not in answer.text
