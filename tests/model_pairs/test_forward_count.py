"""The count of forward passes and tokens, against what the model itself is called with."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
from diffing_mcp.model_pairs.pair import LoadedPair


@contextmanager
def calls_seen(pair: LoadedPair) -> Iterator[list[tuple[int, int]]]:
    """(rows, tokens a row) of every call of the pair's models, from a hook on the models."""
    seen: list[tuple[int, int]] = []

    def see(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids = named.get("input_ids", arguments[0] if arguments else None)
        assert ids is not None
        seen.append((ids.shape[0], ids.shape[1]))

    with pair.sides["base"].hold() as resident:
        handle = resident.transformer.register_forward_pre_hook(see, with_kwargs=True)
        try:
            yield seen
        finally:
            handle.remove()


def test_every_way_to_run_the_models_is_counted(tiny_pair: LoadedPair) -> None:
    ids = torch.tensor([[0, 20, 30, 40], [20, 30, 40, 50]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    sampling = Sampling(n=2, temperature=1.0, max_new_tokens=6, seed=1)
    requests = [GenerationRequest(text="The fox"), GenerationRequest(text="Rivers run to the sea")]
    prompts = sum(len(tiny_pair.tokenizer(request.text)["input_ids"]) for request in requests)

    def passes_of(run: Any) -> tuple[Any, Any]:
        before = tiny_pair.forwards.copy()
        with calls_seen(tiny_pair) as seen:
            result = run()
        count = tiny_pair.forwards - before
        assert count.passes == len(seen) > 0
        return result, count

    _, count = passes_of(lambda: tiny_pair.forward("base", ids, mask))
    assert (count.tokens, count.generated) == (7, 0)
    _, count = passes_of(lambda: tiny_pair.forward("finetuned", ids, mask, layers=[0], logits=False))
    assert (count.tokens, count.generated) == (7, 0)
    _, count = passes_of(lambda: tiny_pair.token_log_probs("base", ids, mask))
    assert (count.tokens, count.generated) == (7, 0)
    _, count = passes_of(lambda: tiny_pair.last_token_logits("base", [20, 30, 40], rows=5))
    assert (count.tokens, count.generated) == (2 + 5, 0)
    completions, count = passes_of(lambda: tiny_pair.amplified(2.0).generate("finetuned", requests, sampling))
    new = [each.tokens + (each.finish == "eos") for several in completions for each in several]
    assert (count.tokens, count.generated) == (prompts + sum(new) - len(new), sum(new))
    contrasted, count = passes_of(lambda: tiny_pair.generate_contrastive(requests, [0.0], sampling))
    new = [each.tokens + (each.finish == "eos") for several in contrasted[0] for each in several]
    assert (count.tokens, count.generated) == (2 * (prompts + sum(new) - len(new)), sum(new))
