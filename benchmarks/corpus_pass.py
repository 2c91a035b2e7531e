"""The corpus pass with all three readers against two bare batched forward passes over the same tokens.

Bare means the transformers model alone, over the very same batches, with its logits thrown away: once with the adapter
switched on and off as the pair does it, once with a merged second copy, which is faster and takes twice the memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.measurement import Measurement, Sizes

READERS = ("kl", "logit_diff_topk_occurring", "activation_difference_lens")
AIM = 1.25


def run(sizes: Sizes) -> list[Measurement]:
    """Time the passes in turn, so that a busy machine slows all of them, and compare the fastest round of each."""
    from diffing_mcp.core.progress import silent
    from diffing_mcp.methods.registry import get_method
    from diffing_mcp.model_pairs.residency import ModelPairs
    from diffing_mcp.model_pairs.resolve import resolve_pair
    from diffing_mcp.preprocessing.corpus_pass import run_corpus_pass

    spec = resolve_pair(sizes.pair)
    with ModelPairs().use(spec, silent) as pair:
        corpus, requests = tokenized(pair, sizes)
        bare = bare_models(spec)
        batches = same_batches(pair, corpus)

        def ours() -> None:
            accumulators = [get_method(name).accumulator(pair, params, corpus) for name, params in requests]  # type: ignore[attr-defined]
            run_corpus_pass(pair, corpus, accumulators, silent)

        rounds: dict[str, Callable[[], None]] = {
            "switched": lambda: bare_passes(bare["switched"], batches),
            "ours": ours,
            "merged": lambda: bare_passes(bare["merged"], batches),
        }
        # One short round each first: the first calls choose kernels and allocate.
        bare_passes(bare["switched"], batches[:1])
        bare_passes(bare["merged"], batches[:1])
        seconds = in_turn(rounds, sizes.repeats)
    wall = {name: spent[0] for name, spent in seconds.items()}
    processor = {name: spent[1] for name, spent in seconds.items()}
    detail = (
        f"{corpus.tokens} tokens: pass {wall['ours']:.1f} s, bare {wall['switched']:.1f} s, bare with a merged copy "
        f"{wall['merged']:.1f} s; processor time {processor['ours']:.1f}, {processor['switched']:.1f}, "
        f"{processor['merged']:.1f} s"
    )
    name = "corpus pass with three readers / two bare passes"
    return [
        Measurement(name=name, value=wall["ours"] / wall["switched"], unit="ratio", aim=AIM, detail=detail),
        # On a machine that does other work, this is the ratio to look at.
        Measurement(name=f"{name}, processor time", value=processor["ours"] / processor["switched"], unit="ratio"),
        Measurement(name=f"{name}, merged copy", value=wall["ours"] / wall["merged"], unit="ratio"),
    ]


def tokenized(pair: Any, sizes: Sizes) -> tuple[Any, list[tuple[str, Any]]]:
    """The corpus as tokens, and the three readers with their parameters for it."""
    from diffing_mcp.methods.registry import get_method
    from diffing_mcp.preprocessing.text_sources import open_text, text_source

    requests: list[tuple[str, Any]] = [
        (name, get_method(name).Params.model_validate({"max_samples": sizes.samples, "max_tokens": sizes.tokens}))
        for name in READERS
    ]
    return open_text(pair, text_source(requests[0][1])).corpus, requests


def same_batches(pair: Any, corpus: Any) -> list[tuple[Any, Any]]:
    """Token ids and masks of the batches that the pass makes of the corpus."""
    import torch

    from diffing_mcp.preprocessing.corpus_pass import logit_batch_tokens, plan_batches

    budget = logit_batch_tokens(pair)
    batches = []
    for indices in plan_batches([len(ids) for ids in corpus.ids], budget):
        rows = [corpus.ids[index] for index in indices]
        width = max(len(row) for row in rows)
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        batches.append((ids.to(pair.device), mask.to(pair.device)))
    return batches


def bare_models(spec: Any) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """For each way of having two models: a function that gives the base model ready to be called, and one for the
    finetuned model.
    """
    import copy

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from diffing_mcp.model_pairs.files import local_folder
    from diffing_mcp.model_pairs.loading import choose_dtype, read_config

    files, adapter_files = spec.base.files, spec.finetuned.adapter
    source = local_folder(files.id, files.revision, files.subfolder)
    adapter = local_folder(adapter_files.id, adapter_files.revision, adapter_files.subfolder)
    dtype = choose_dtype(files, read_config(files, source), "cpu")
    base = AutoModelForCausalLM.from_pretrained(source, dtype=dtype).eval()
    merged = PeftModel.from_pretrained(copy.deepcopy(base), adapter).merge_and_unload().eval()
    switched: Any = PeftModel.from_pretrained(copy.deepcopy(base), adapter).eval()

    def off() -> Any:
        switched.base_model.disable_adapter_layers()
        return switched

    def on() -> Any:
        switched.base_model.enable_adapter_layers()
        return switched

    return {"merged": (lambda: base, lambda: merged), "switched": (off, on)}


def bare_passes(models: tuple[Callable[[], Any], Callable[[], Any]], batches: list[tuple[Any, Any]]) -> None:
    """Both forward passes over all batches."""
    import torch

    with torch.inference_mode():
        for side in models:
            model = side()
            for ids, mask in batches:
                model(input_ids=ids, attention_mask=mask, use_cache=False)


def _timed(work: Callable[[], None]) -> tuple[float, float]:
    started, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - used


def in_turn(rounds: dict[str, Callable[[], None]], repeats: int) -> dict[str, tuple[float, float]]:
    """Seconds of the fastest round of each: on the wall, and of processor time over all threads."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in rounds}
    for _ in range(repeats):
        for name, work in rounds.items():
            spent[name].append(_timed(work))
    return {name: (min(wall for wall, _ in values), min(used for _, used in values)) for name, values in spent.items()}
