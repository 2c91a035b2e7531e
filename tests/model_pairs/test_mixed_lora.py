"""An amplified side as one LoRA computes what the amplified side computes, and is stored only while it is used."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from diffing_mcp.model_pairs.mixed_lora import mixed_lora
from diffing_mcp.model_pairs.modules import ModulePlace
from diffing_mcp.model_pairs.pair import LoadedPair
from diffing_mcp.model_pairs.specs import AdapterFiles

IDS = torch.arange(5, 25)[None]


def logits(pair: LoadedPair) -> torch.Tensor:
    found = pair.forward("finetuned", IDS, torch.ones_like(IDS)).logits
    assert found is not None
    return found


def by_layer(place: ModulePlace) -> float:
    return float(place.layer or 0)


@pytest.mark.parametrize("base_adapter", [False, True])
def test_it_computes_what_the_amplified_side_computes(
    base_adapter: bool, tiny_models: Any, tiny_adapters: Any, make_pair: Any, pairs: Any
) -> None:
    model = tiny_models()
    one, other, under = (tiny_adapters(model, seed=seed, rank=rank) for seed, rank in ((1, 4), (2, 8), (3, 4)))
    weights: tuple[Any, ...] = (0.5, 1.0, -1.0, 2.0, by_layer)
    with pairs.use(make_pair(model, adapter=one, base_adapter=under if base_adapter else None)) as pair:
        for weight, others in itertools.product(weights, (False, True)):
            more = [(AdapterFiles(id=str(other)), lambda place: 0.75)] if others else []
            amplified = pair.amplified(weight, more)
            mixture = mixed_lora(amplified.sides["finetuned"])
            assert mixture is not None
            assert mixture.rank == 4 + 8 * others + 4 * (base_adapter and weight != 1.0)
            with mixture.folder() as folder:
                alone = pair.with_adapter(AdapterFiles(id=str(folder)))
                assert torch.allclose(logits(alone), logits(amplified), atol=2e-4), (weight, others)
            assert not folder.exists()


def test_nothing_is_mixed_in_with_weight_0(tiny_pair: LoadedPair) -> None:
    mixture = mixed_lora(tiny_pair.amplified(0.0).sides["finetuned"])
    assert mixture is not None
    assert mixture.rank == 0


def test_a_full_finetune_is_no_lora(tiny_models: Any, make_pair: Any, pairs: Any) -> None:
    with pairs.use(make_pair(tiny_models(), tiny_models(seed=1))) as pair:
        assert mixed_lora(pair.amplified(2.0).sides["finetuned"]) is None
