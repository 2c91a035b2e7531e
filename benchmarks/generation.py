"""Steered, amplified and contrastive generation against plain batched generation of the same number of tokens, on the
same prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchmarks.corpus_pass import in_turn
from benchmarks.measurement import Measurement, Sizes

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.pair import LoadedPair

AIM = 1.2
_PROMPTS = 24
_ROUNDS = 3


def run(sizes: Sizes) -> list[Measurement]:
    """Time the kinds of generation in turn, so that a busy machine slows all of them, and compare the fastest round of
    each.

    Every kind writes exactly `sizes.tokens` tokens a prompt: stop tokens are taken away for the time of the benchmark.
    """
    import torch

    from diffing_mcp.core.chat import ChatMessage
    from diffing_mcp.core.progress import silent
    from diffing_mcp.methods.texts.prompts import PROMPTS
    from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
    from diffing_mcp.model_pairs.interventions import Intervention
    from diffing_mcp.model_pairs.residency import ModelPairs
    from diffing_mcp.model_pairs.resolve import resolve_pair

    with ModelPairs().use(resolve_pair(sizes.pair), silent) as pair:
        texts = [PROMPTS[index % len(PROMPTS)] for index in range(_PROMPTS)]
        requests = [
            GenerationRequest(messages=(ChatMessage(role="user", content=text),))
            if pair.has_chat_template
            else GenerationRequest(text=text)
            for text in texts
        ]
        sampling = Sampling(max_new_tokens=sizes.tokens)
        vector = torch.randn(pair.d_model, generator=torch.Generator().manual_seed(0))
        steered = [Intervention(pair.num_layers // 2, vector, strength=0.1)]
        kinds: dict[str, Callable[[], Any]] = {
            "plain": lambda: pair.generate("finetuned", requests, sampling),
            "base": lambda: pair.generate("base", requests, sampling),
            "steered": lambda: pair.generate("finetuned", requests, sampling, interventions=steered),
            "amplified": lambda: pair.amplified(2.0).generate("finetuned", requests, sampling),
            "contrastive": lambda: pair.generate_contrastive(requests, [1.0], sampling),
        }
        with _endless(pair) as pair:
            pair.generate("finetuned", requests[:2], Sampling(max_new_tokens=2))
            seconds = {name: wall for name, (wall, _) in in_turn(kinds, _ROUNDS).items()}
    detail = (
        ", ".join(f"{name} {spent:.1f} s" for name, spent in seconds.items())
        + f" for {_PROMPTS} x {sizes.tokens} tokens"
    )
    both = seconds["plain"] + seconds["base"]
    return [
        Measurement(
            name="steered generation / plain generation",
            value=seconds["steered"] / seconds["plain"],
            unit="ratio",
            aim=AIM,
            detail=detail,
        ),
        Measurement(
            name="amplified generation / plain generation",
            value=seconds["amplified"] / seconds["plain"],
            unit="ratio",
            aim=AIM,
        ),
        Measurement(
            name="contrastive decoding / plain generation by both models",
            value=seconds["contrastive"] / both,
            unit="ratio",
            aim=AIM,
        ),
    ]


@contextmanager
def _endless(pair: LoadedPair) -> Iterator[LoadedPair]:
    """The pair, with no token that ends a text inside the context."""
    with ExitStack() as stack:
        residents = {
            id(resident): resident for side in pair.sides.values() for resident in [stack.enter_context(side.hold())]
        }
        kept = {key: resident.stop_ids for key, resident in residents.items()}
        for resident in residents.values():
            resident.stop_ids = frozenset()
        try:
            yield replace(pair, stops=frozenset())
        finally:
            for key, resident in residents.items():
                resident.stop_ids = kept[key]
