"""Buffers that checkpoints store beside the parameters are compared as these are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunStore
from diffing_mcp.model_pairs.residency import ModelPairs
from tests.model_pairs.adapter_draws import peft_log_probs

TEXT = [7, 30, 41, 5, 63, 74, 100, 9, 12, 200]
IDS = torch.tensor([TEXT])


def log_probs(pair: Any, side: str) -> torch.Tensor:
    return pair.forward(side, IDS, torch.ones_like(IDS)).logits[0].log_softmax(-1)


def scaled(model: Any) -> None:
    model.model.layers[1].layer_scalar *= 0.5


def test_a_stored_buffer_is_a_difference_like_any_other(
    tiny_models: Callable[..., Path], make_pair: Any, pairs: Any, own_data_folder: Path
) -> None:
    """Gemma 4 multiplies each layer's output by one, and routers of mixtures of experts balance their load by them."""
    base, finetuned = tiny_models("gemma4"), tiny_models("gemma4", change=scaled)
    spec = make_pair(base, finetuned=finetuned)
    [record] = run_methods(pairs, spec, [("weight_difference", {})], RunStore(own_data_folder / "runs"))
    result: Any = record.result()
    weights = record.manifest.notes["weights"]
    assert not result.identical
    [row] = result.modules
    assert (row.layer, row.module, row.norm) == (1, "layer_scalar", pytest.approx(0.5))
    assert weights["base"] != weights["finetuned"]
    with pairs.use(spec) as pair:
        expected = peft_log_probs(finetuned, None, [TEXT])[0]
        torch.testing.assert_close(log_probs(pair, "finetuned"), expected, atol=1e-4, rtol=1e-4)
        with pytest.raises(InvalidInput, match=r"layer_scalar.*cannot be amplified"):
            log_probs(pair.amplified(1.0), "finetuned")
        before = log_probs(pair.amplified(lambda place: float(place.layer != 1)), "finetuned")
        torch.testing.assert_close(before, log_probs(pair, "base"))


def test_a_stored_buffer_of_two_models_read_in_turn(
    tiny_models: Callable[..., Path], make_pair: Any, own_data_folder: Path
) -> None:
    base, finetuned = tiny_models("gemma4"), tiny_models("gemma4", change=scaled)
    with ModelPairs().use(make_pair(base, declared_identical=True)) as pair, pair.sides["base"].hold() as resident:
        limit = int(1.5 * resident.bytes())
    with ModelPairs(limit).use(make_pair(base, finetuned=finetuned)) as pair:
        assert pair.sequential
        changed = [each for each in pair.weight_deltas() if each.delta is not None]
    assert [(each.place.layer, each.parameter) for each in changed] == [(1, "layer_scalar")]
