"""Gradients of an answer's log-probability are those of the passes that score it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffing_mcp.core.errors import InvalidInput


@pytest.mark.parametrize("side", ["base", "finetuned"])
def test_a_gradient_says_what_a_step_gives(
    side: Any, pairs: Any, tiny_models: Any, tiny_adapters: Any, make_pair: Any
) -> None:
    base = tiny_models()
    with pairs.use(make_pair(base, adapter=tiny_adapters(base))) as pair:
        prompts, answer = [[5, 9, 31, 7], [8, 40]], [12, 3, 77]
        gradients = pair.answer_gradients(side, [(prompt, answer) for prompt in prompts])
        assert [tuple(each.shape) for each in gradients] == [(4, pair.d_model), (2, pair.d_model)]
        with pair._running(side) as (resident, _):
            embedding = resident.transformer.get_input_embeddings()
            rows = torch.tensor([[*prompts[0], *answer]])

            def log_prob(step: torch.Tensor) -> float:
                def moved(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
                    changed = output.clone()
                    changed[0, 2] += step
                    return changed

                handle = embedding.register_forward_hook(moved)
                try:
                    with torch.inference_mode():
                        logits = resident.transformer(input_ids=rows).logits.double().log_softmax(-1)
                finally:
                    handle.remove()
                return sum(float(logits[0, 3 + place, token]) for place, token in enumerate(answer))

            direction = torch.nn.functional.normalize(
                torch.randn(pair.d_model, generator=torch.Generator().manual_seed(0)), dim=0
            )
            slope = (log_prob(1e-2 * direction) - log_prob(-1e-2 * direction)) / 2e-2
        assert float(gradients[0][2] @ direction) == pytest.approx(slope, rel=0.02, abs=1e-3)


def test_an_empty_answer_has_none(pairs: Any, tiny_models: Any, make_pair: Any) -> None:
    with (
        pairs.use(make_pair(tiny_models(), declared_identical=True)) as pair,
        pytest.raises(InvalidInput, match="at least one token"),
    ):
        pair.answer_gradients("base", [([4], [])])
