"""What collected activations are checked against: plain forward passes, sample by sample, and a stop in the middle."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import LlamaForCausalLM

from diffing_mcp.core.errors import Cancelled
from diffing_mcp.model_pairs.pair import LoadedPair
from diffing_mcp.preprocessing.activations import PairedActivations
from diffing_mcp.preprocessing.corpora import CorpusParams, load_corpus
from diffing_mcp.preprocessing.tokenize import tokenize

LAYERS = (0, 1)


def change(model: LlamaForCausalLM) -> None:
    """Layer 1 writes something else; layer 0 is untouched."""
    model.model.layers[1].mlp.down_proj.weight.mul_(1.5)


def expected(pair: LoadedPair, texts: str, skip_first: int) -> dict[int, tuple[torch.Tensor, torch.Tensor, list[int]]]:
    """Layer -> base and finetuned rows and their tokens, one sample at a time, no batches."""
    params = CorpusParams(corpus=texts)
    corpus = tokenize(load_corpus(params), pair, params)
    found = {}
    for layer in LAYERS:
        sides = []
        tokens: list[int] = []
        for side in ("base", "finetuned"):
            rows, tokens = [], []
            for ids, start in zip(corpus.ids, corpus.content_start, strict=True):
                inputs = torch.tensor([ids])
                hidden = pair.forward(side, inputs, torch.ones_like(inputs), layers=(layer,), logits=False).hidden[
                    layer
                ]
                rows.append(hidden[0, start + skip_first :])
                tokens += ids[start + skip_first :]
            sides.append(torch.cat(rows).float())
        found[layer] = (sides[0], sides[1], tokens)
    return found


def check_rows(reader: PairedActivations, wanted: tuple[torch.Tensor, torch.Tensor, list[int]]) -> None:
    base, finetuned, tokens = wanted
    assert reader.num_tokens == len(tokens)
    for seed in (None, 3):
        blocks = list(reader.blocks(37, seed=seed))
        order = torch.cat([block.tokens for block in blocks])
        assert sorted(order.tolist()) == list(range(len(tokens)))
        torch.testing.assert_close(torch.cat([block.base for block in blocks]), base[order], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            torch.cat([block.finetuned for block in blocks]), finetuned[order], atol=1e-4, rtol=1e-4
        )
    samples, places = reader.locate(torch.arange(reader.num_tokens))
    assert [reader.sample_ids(int(sample))[int(place)] for sample, place in zip(samples, places, strict=True)] == tokens
    assert torch.equal(torch.cat([block.tokens for block in reader.samples()]), torch.arange(reader.num_tokens))
    assert len(list(reader.samples())) == reader.num_samples == int(samples[-1]) + 1


def stop_at(row: int) -> Callable[..., None]:
    """A `Progress` that cancels beyond this row."""

    def stop(done: float, total: float | None = None, message: str = "") -> None:
        if done > row:
            raise Cancelled("stop")

    return stop
