"""Injection at tokens of the prompt: the formula exactly, only at those tokens, only in the pass that carries the
prompt.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffing_mcp.core.errors import InvalidInput, NotTheSame
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
from diffing_mcp.model_pairs.interventions import Intervention, PromptTokens, changed


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.floats(-3, 3), st.sampled_from(["add", "replace"]))
def test_the_formula(seed: int, strength: float, mode: Any) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(2, 5, 8, generator=generator)
    vectors = torch.randn(2, 2, 8, generator=generator) * 100
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    places = PromptTokens(torch.tensor([[1, 3], [4, -1]]))
    result = changed(Intervention(0, vectors, strength, mode, places, match_norm=True), hidden, mask)
    expected = hidden.clone()
    for row, token, slot in ((0, 2, 0), (0, 4, 1), (1, 4, 0)):
        h, v = hidden[row, token], vectors[row, slot]
        step = strength * h.norm() * v / v.norm()
        expected[row, token] = h + step if mode == "add" else step
    assert torch.allclose(result, expected, atol=1e-5)
    untouched = torch.ones(2, 5, dtype=torch.bool)
    untouched[0, 2] = untouched[0, 4] = untouched[1, 4] = False
    assert torch.equal(result[untouched], hidden[untouched])
    assert torch.equal(
        changed(Intervention(0, vectors, strength, mode, places, match_norm=True), hidden, mask, step=1), hidden
    )


def test_a_zero_vector_adds_nothing() -> None:
    hidden, mask = torch.randn(1, 3, 4), torch.ones(1, 3, dtype=torch.long)
    injection = Intervention(0, torch.zeros(1, 1, 4), 1.0, "add", PromptTokens(torch.tensor([[1]])), match_norm=True)
    assert torch.equal(changed(injection, hidden, mask), hidden)


@pytest.mark.parametrize(
    ("vector", "places"),
    [(torch.ones(2, 3, 32), [[1, 2]]), (torch.ones(1, 2, 32), [[1, 40]]), (torch.ones(1, 2, 16), [[1, 2]])],
)
def test_what_does_not_fit_is_refused(tiny_pair: Any, vector: torch.Tensor, places: list[list[int]]) -> None:
    injection = Intervention(1, vector, 1.0, "add", PromptTokens(torch.tensor(places)))
    ids = torch.tensor([[5, 6, 7, 8]])
    with pytest.raises(InvalidInput):
        tiny_pair.forward("base", ids, torch.ones_like(ids), layers=[1], logits=False, interventions=[injection])
    bad = Intervention(1, torch.ones(32), mode="remove", match_norm=True)
    with pytest.raises(InvalidInput, match="match_norm"):
        tiny_pair.forward("base", ids, torch.ones_like(ids), layers=[1], logits=False, interventions=[bad])


def test_each_request_of_a_batch_gets_its_own_vectors(tiny_pair: Any) -> None:
    """Requests of different lengths, in one batch padded on the left, answer as they do alone."""
    texts = ["The quick brown fox jumps over", "Bake the cake", "Rivers run"]
    generator = torch.Generator().manual_seed(2)
    vectors = torch.randn(3, 2, 32, generator=generator)
    places = torch.tensor([[1, 4], [2, -1], [0, 1]])
    sampling = Sampling(temperature=0, max_new_tokens=6)

    def injection(rows: slice) -> list[Intervention]:
        return [Intervention(1, vectors[rows], 2.0, "add", PromptTokens(places[rows]), match_norm=True)]

    requests = [GenerationRequest(text=text) for text in texts]
    together = tiny_pair.generate("finetuned", requests, sampling, interventions=injection(slice(None)))
    alone = [
        tiny_pair.generate("finetuned", requests[i : i + 1], sampling, interventions=injection(slice(i, i + 1)))[0]
        for i in range(3)
    ]
    assert together == alone
    assert together != tiny_pair.generate("finetuned", requests, sampling)
    assert tiny_pair.generate(
        "finetuned", requests, Sampling(n=2, temperature=0, max_new_tokens=6), interventions=injection(slice(None))
    ) == [[each[0], each[0]] for each in together]


def test_the_base_with_another_adapter(tiny_pair: Any, tiny_models: Any, tiny_adapters: Any, pairs: Any) -> None:
    from diffing_mcp.model_pairs.specs import AdapterFiles

    folder = tiny_adapters(tiny_models(), seed=9)
    ids = torch.tensor([[5, 6, 7, 8]])
    mask = torch.ones_like(ids)
    other = tiny_pair.with_adapter(AdapterFiles(id=str(folder)))
    plain = tiny_pair.forward("base", ids, mask).logits
    finetuned = tiny_pair.forward("finetuned", ids, mask).logits
    assert torch.equal(other.forward("base", ids, mask).logits, plain)
    third = other.forward("finetuned", ids, mask).logits
    assert not torch.equal(third, plain)
    assert not torch.equal(third, finetuned)
    assert torch.equal(tiny_pair.forward("finetuned", ids, mask).logits, finetuned)
    assert max(status.adapters for status in pairs.models.status()) >= 2
    with pytest.raises(NotTheSame):
        tiny_pair.with_adapter(AdapterFiles(id=str(tiny_adapters(tiny_models(width=64))))).forward(
            "finetuned", ids, mask
        )
