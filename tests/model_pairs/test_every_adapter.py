"""Our log-probabilities against peft's own, for random adapters of every kind on random models of every family; and
that no base ever changes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffing_mcp.model_pairs.residency import ModelPairs
from tests.model_pairs.adapter_draws import draw_adapter, peft_log_probs, save_adapter

TEXTS = [[7, 30, 41, 5, 63, 74, 100, 9], [12, 5, 7], [200, 30, 63, 9, 150, 160]]
BLOCK = 10


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """The texts as one batch, padded on alternating sides."""
    width = max(map(len, TEXTS))
    ids = torch.tensor(
        [
            [0] * (width - len(text)) + text if index % 2 else text + [0] * (width - len(text))
            for index, text in enumerate(TEXTS)
        ]
    )
    return ids, (ids != 0).long()


def computed(pair: Any, side: str) -> list[torch.Tensor]:
    """Our log-probabilities of each text, out of one padded batch."""
    ids, mask = batch()
    rows = pair.forward(side, ids, mask).logits.float().log_softmax(-1)
    return [row[keep.bool()] for row, keep in zip(rows, mask, strict=True)]


def check(
    seed: int, tiny_models: Callable[..., Path], make_pair: Callable[..., Any], pairs: ModelPairs, folder: Path
) -> None:
    """Two adapters of one base (drawn from `seed`) give what peft gives, in whatever order they run, and the base stays
    what it was.
    """
    first = draw_adapter(seed)
    base = tiny_models(first.family, tie_word_embeddings=first.tied) if first.family != "gpt2" else tiny_models("gpt2")
    save_adapter(first, base, folder, seed)
    expected = peft_log_probs(base, folder, TEXTS)
    bare = peft_log_probs(base, None, TEXTS)
    with pairs.use(make_pair(base, adapter=folder)) as pair:
        for side, truth in (("finetuned", expected), ("base", bare), ("finetuned", expected)):
            for ours, theirs in zip(computed(pair, side), truth, strict=True):
                worst = float((ours[:, : theirs.shape[1]] - theirs).abs().max())
                assert worst < 5e-4, f"seed {seed}, {first}, {side}: log-probabilities differ by {worst}"
        [gradient] = pair.answer_gradients("finetuned", [(TEXTS[0][:5], TEXTS[0][5:])])
        assert gradient.abs().sum() > 0, f"seed {seed}, {first}: no gradient reaches the embeddings"


def run_block(block: int, tiny_models: Any, make_pair: Any, tmp_path: Path) -> None:
    """Ten draws on the same resident models, so that adapters of one base meet."""
    pairs = ModelPairs()
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        check(seed, tiny_models, make_pair, pairs, tmp_path / str(seed))


@pytest.mark.parametrize("block", range(1))
def test_random_adapters_compute_what_peft_computes(block, tiny_models, make_pair, tmp_path):
    run_block(block, tiny_models, make_pair, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("block", range(1, 33))
def test_many_random_adapters_compute_what_peft_computes(block, tiny_models, make_pair, tmp_path):
    run_block(block, tiny_models, make_pair, tmp_path)
