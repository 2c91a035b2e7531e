"""Contrastive decoding of the two sides: exact at the models themselves, the formula in between, whatever the pair is
made of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffing_mcp.core.errors import Cancelled, InvalidInput, OutOfRoom
from diffing_mcp.model_pairs.contrastive import contrast
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
from diffing_mcp.model_pairs.residency import ModelPairs

REQUESTS = [
    GenerationRequest(text=text)
    for text in ("The quick brown fox", "Bake", "Rivers run to the sea; mountains stay where they are and")
]
SAMPLING = Sampling(n=2, max_new_tokens=8, seed=3)


def texts(completions: Any) -> list[list[str]]:
    return [[each.text for each in several] for several in completions]


def test_the_plain_models_are_two_of_the_alphas(tiny_pair: Any) -> None:
    found = tiny_pair.generate_contrastive(REQUESTS, [0.0, -1.0, 4.0], SAMPLING)
    assert texts(found[0]) == texts(tiny_pair.generate("finetuned", REQUESTS, SAMPLING))
    assert texts(found[1]) == texts(tiny_pair.generate("base", REQUESTS, SAMPLING))
    assert texts(found[2]) not in (texts(found[0]), texts(found[1]))
    assert found == tiny_pair.generate_contrastive(REQUESTS, [0.0, -1.0, 4.0], SAMPLING)
    assert texts(found[2]) == texts(tiny_pair.generate_contrastive(REQUESTS, [4.0], SAMPLING)[0])


def test_two_full_models_equal_an_adapter_on_one(
    tiny_models: Any, tiny_adapters: Any, make_pair: Any, pairs: Any
) -> None:
    base = tiny_models()
    adapter = tiny_adapters(base, seed=4)
    alphas, greedy = [2.0, -3.0], Sampling(temperature=0, max_new_tokens=8)
    with (
        pairs.use(make_pair(base, adapter=adapter, name="adapter")) as one,
        pairs.use(make_pair(base, adapter=adapter, merge=True, name="two")) as two,
    ):
        first, second = (pair.generate_contrastive(REQUESTS, alphas, greedy) for pair in (one, two))
    assert [texts(of_alpha) for of_alpha in first] == [texts(of_alpha) for of_alpha in second]
    for ours, theirs in zip(first[0][0], second[0][0], strict=True):
        assert ours.finetuned_log_prob == pytest.approx(theirs.finetuned_log_prob, abs=1e-3)


def test_log_probabilities_are_those_of_a_plain_pass(tiny_pair: Any) -> None:
    request = REQUESTS[0]
    prompt = tiny_pair.tokenizer(request.text)["input_ids"]
    for row in tiny_pair.generate_contrastive([request], [1.5], Sampling(n=4, max_new_tokens=6, seed=1))[0][0]:
        answer = tiny_pair.tokenizer(row.text)["input_ids"]
        if len(answer) != row.tokens:
            continue  # the text reads as other tokens than those that were drawn
        ids = torch.tensor([[*prompt, *answer]])
        for side, total in (("base", row.base_log_prob), ("finetuned", row.finetuned_log_prob)):
            expected = tiny_pair.token_log_probs(side, ids, torch.ones_like(ids))[0, len(prompt) - 1 :].sum()
            assert total == pytest.approx(float(expected), abs=1e-3)


@given(
    st.integers(-50, 50).map(lambda tenths: tenths / 10), st.sampled_from([0.0, 0.05, 0.5, 1.0]), st.integers(0, 1000)
)
@settings(max_examples=60)
def test_scores_follow_the_formula(alpha: float, plausibility: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    base, finetuned = torch.log_softmax(3 * torch.randn(2, 3, 12, generator=generator), dim=-1)
    scores = contrast(base, finetuned, torch.full((3,), alpha), plausibility)
    if alpha in (0, -1):
        assert torch.equal(scores, finetuned if alpha == 0 else base)
        return
    anchor = (finetuned if alpha >= -0.5 else base).exp()
    allowed = anchor >= plausibility * anchor.amax(-1, keepdim=True) * (1 - 1e-6)
    kept = torch.isfinite(scores)
    assert bool((kept <= allowed).all())
    assert bool(kept.gather(1, anchor.argmax(-1, keepdim=True)).all())
    assert torch.allclose(scores[kept], ((1 + alpha) * finetuned - alpha * base)[kept], atol=1e-4)
    if plausibility == 0:
        assert bool(kept.all())


def test_equal_models_write_the_same_at_every_alpha(identical_pair: Any) -> None:
    found = identical_pair.generate_contrastive(REQUESTS, [0.0, 5.0, -6.0], SAMPLING, plausibility=0.0)
    assert texts(found[0]) == texts(found[1]) == texts(found[2])
    assert all(
        row.base_log_prob == row.finetuned_log_prob for of_alpha in found for several in of_alpha for row in several
    )


def test_what_cannot_be_done_is_said(tiny_pair: Any, tiny_models: Any, make_pair: Any) -> None:
    with pytest.raises(InvalidInput, match="finite"):
        tiny_pair.generate_contrastive(REQUESTS, [float("nan")], SAMPLING)
    with pytest.raises(InvalidInput, match="context"):
        tiny_pair.generate_contrastive(REQUESTS, [1.0], Sampling(max_new_tokens=300))
    calls = []

    def cancel(done: float, total: float | None = None, message: str = "") -> None:
        calls.append(done)
        if len(calls) == 3:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        tiny_pair.generate_contrastive(REQUESTS, [1.0], SAMPLING, progress=cancel)
    base, other = tiny_models(), tiny_models(seed=1)
    size = sum(file.stat().st_size for file in Path(base).glob("*.safetensors"))
    with ModelPairs(memory_limit=int(1.5 * size)).use(make_pair(base, other)) as pair:
        assert pair.sequential
        with pytest.raises(OutOfRoom, match="one after the other"):
            pair.generate_contrastive(REQUESTS, [1.0], SAMPLING)
