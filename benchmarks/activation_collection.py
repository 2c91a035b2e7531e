"""Collecting both models' activations against bare forward passes that stop at the same layer, and the memory that it
takes.

Bare means the transformers model alone over the very same batches, left after the wanted layer, its outputs thrown
away.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.corpus_pass import bare_models, in_turn
from benchmarks.measurement import Measurement, PeakMemory, Sizes, in_fresh_process, resident_bytes

DEPTH = 0.5
GROWTH = 4
"""The larger collection has this many times the tokens of the smaller."""
ROUNDS = 2
AIM = 1.15
AIM_MEMORY = 1.1


def run(sizes: Sizes) -> list[Measurement]:
    """The ratio of times, then that of peak memory for two token counts, both in one process of their own."""
    small, large = in_fresh_process(peaks_beyond_pair, sizes=sizes.model_dump(), factors=[1, GROWTH])
    detail = (
        f"{small['tokens']} tokens: {small['bytes'] / 1e6:.0f} MB, {large['tokens']} tokens: "
        f"{large['bytes'] / 1e6:.0f} MB"
    )
    return [
        *_times(sizes),
        Measurement(
            name=f"peak memory of collecting, {GROWTH} x tokens / 1 x tokens",
            value=large["bytes"] / max(1, small["bytes"]),
            unit="ratio",
            aim=AIM_MEMORY,
            detail=detail,
        ),
    ]


def _times(sizes: Sizes) -> list[Measurement]:
    from diffing_mcp.core.progress import silent
    from diffing_mcp.model_pairs.residency import ModelPairs
    from diffing_mcp.model_pairs.resolve import resolve_pair
    from diffing_mcp.preprocessing.activation_collection import collect
    from diffing_mcp.preprocessing.activation_sources import read_text
    from diffing_mcp.preprocessing.activation_store import ActivationStore

    spec, params = resolve_pair(sizes.pair), _params(sizes)
    with ModelPairs().use(spec, silent) as pair, tempfile.TemporaryDirectory(prefix="diffing-bench-") as folder:
        corpus = read_text(pair, params).corpus
        layer = round(DEPTH * (pair.num_layers - 1))
        batches = same_batches(pair, corpus)
        bare = bare_models(spec)["switched"]
        store = ActivationStore(Path(folder))

        def ours() -> None:
            index = collect(store, pair, params)
            store.delete(index.id)

        stopped_passes(bare, batches[:1], layer)
        rounds: dict[str, Callable[[], None]] = {"bare": lambda: stopped_passes(bare, batches, layer), "ours": ours}
        seconds = in_turn(rounds, sizes.repeats)
    detail = (
        f"{corpus.tokens} tokens, layer {layer} of {pair.num_layers}: collected in {seconds['ours'][0]:.1f} s, bare "
        f"{seconds['bare'][0]:.1f} s"
    )
    name = "collecting activations / two bare passes stopped there"
    return [
        Measurement(name=name, value=seconds["ours"][0] / seconds["bare"][0], unit="ratio", aim=AIM, detail=detail),
        Measurement(name=f"{name}, processor time", value=seconds["ours"][1] / seconds["bare"][1], unit="ratio"),
    ]


def _params(sizes: Sizes) -> Any:
    from diffing_mcp.preprocessing.activation_collection import CollectionParams

    return CollectionParams(max_samples=sizes.samples, max_tokens=sizes.tokens, layers=(DEPTH,))


def same_batches(pair: Any, corpus: Any) -> list[tuple[Any, Any]]:
    """Token ids and masks of the batches of a pass that needs no logits."""
    import torch

    from diffing_mcp.core.settings import settings
    from diffing_mcp.preprocessing.corpus_pass import plan_batches

    batches = []
    for indices in plan_batches([len(ids) for ids in corpus.ids], settings().batch_tokens):
        rows = [corpus.ids[index] for index in indices]
        width = max(len(row) for row in rows)
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        batches.append((ids.to(pair.device), mask.to(pair.device)))
    return batches


class _Stop(Exception):
    """Raised after the wanted layer."""


def stopped_passes(
    models: tuple[Callable[[], Any], Callable[[], Any]], batches: list[tuple[Any, Any]], layer: int
) -> None:
    """Both models over all batches, up to and including `layer`."""
    import torch

    def stop(*_: Any) -> None:
        raise _Stop

    with torch.inference_mode():
        for side in models:
            model = side()
            blocks = max((module for module in model.modules() if isinstance(module, torch.nn.ModuleList)), key=len)
            handle = blocks[layer].register_forward_hook(stop)
            try:
                for ids, mask in batches:
                    try:
                        model(input_ids=ids, attention_mask=mask, use_cache=False)
                    except _Stop:
                        continue
            finally:
                handle.remove()


def tidy(done: float, total: float | None = None, message: str = "") -> None:
    """A `Progress` that collects garbage and returns free memory to the system."""
    resident_bytes()


def peaks_beyond_pair(sizes: dict[str, object], factors: list[int]) -> list[dict[str, int]]:
    """Tokens, and bytes that collecting adds at its highest to a pair that is in memory, for each factor times the
    samples: the lowest of `ROUNDS`.

    All of it happens in one process after a collection that is not measured: what a process allocates over its first
    dozen batches stays, so a short first collection never reaches the peak that every later one has. Garbage is
    collected, and what the allocator holds back is returned, after every forward pass.
    """
    from diffing_mcp.core.progress import silent
    from diffing_mcp.model_pairs.residency import ModelPairs
    from diffing_mcp.model_pairs.resolve import resolve_pair
    from diffing_mcp.preprocessing.activation_collection import CollectionParams, collect
    from diffing_mcp.preprocessing.activation_store import ActivationStore

    asked = Sizes.model_validate(sizes)
    several = [asked.model_copy(update={"samples": factor * asked.samples}) for factor in factors]
    found: list[dict[str, int]] = []
    with (
        ModelPairs().use(resolve_pair(asked.pair), silent) as pair,
        tempfile.TemporaryDirectory(prefix="diffing-bench-") as folder,
    ):
        store = ActivationStore(Path(folder))
        before = resident_bytes()

        def measured(params: CollectionParams) -> dict[str, int]:
            with PeakMemory() as memory:
                index = collect(store, pair, params, tidy)
            store.delete(index.id)
            return {"tokens": index.tokens, "bytes": memory.peak - before}

        measured(_params(several[-1]))
        for _ in range(ROUNDS):
            now = [measured(_params(each)) for each in several]
            found = [min(old, new, key=lambda row: row["bytes"]) for old, new in zip(found or now, now, strict=True)]
    return found
