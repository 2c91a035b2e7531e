"""Memory of a resident LoRA pair against the base model alone."""

from __future__ import annotations

from typing import Any

from benchmarks.measurement import Measurement, Sizes, in_fresh_process, resident_bytes

AIM = 1.05


def run(sizes: Sizes) -> list[Measurement]:
    """Each in a process of its own that has imported the same libraries before it counts.

    One model is counted twice: loaded as the pair loads it, and by transformers alone. The difference of the two is
    what tracing needs, a few MB whatever the size of the model.
    """
    bare = in_fresh_process(bytes_of_one_model, pair=sizes.pair)
    one = in_fresh_process(bytes_of_pair, pair=sizes.pair, adapter=False)
    pair = in_fresh_process(bytes_of_pair, pair=sizes.pair, adapter=True)
    detail = (
        f"one model {one / 1e6:.0f} MB, pair {pair / 1e6:.0f} MB; the same model by transformers alone "
        f"{bare / 1e6:.0f} MB"
    )
    return [
        Measurement(name="memory of a LoRA pair / one model", value=pair / one, unit="ratio", aim=AIM, detail=detail),
        Measurement(name="memory of a LoRA pair / one model by transformers alone", value=pair / bare, unit="ratio"),
    ]


def bytes_of_one_model(pair: str) -> int:
    """Memory that the base model takes, loaded by transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from diffing_mcp.model_pairs.files import local_folder
    from diffing_mcp.model_pairs.loading import choose_dtype, read_config
    from diffing_mcp.model_pairs.resolve import resolve_pair

    files = resolve_pair(pair).base.files
    source = local_folder(files.id, files.revision, files.subfolder)
    before = after_imports()
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=choose_dtype(files, read_config(files, source), "cpu")
    ).eval()
    ids = _ids()
    with torch.inference_mode():
        model(input_ids=ids)
        model(input_ids=ids)
    taken = resident_bytes() - before
    del tokenizer
    return taken


def bytes_of_pair(pair: str, adapter: bool) -> int:
    """Memory that the pair takes, both sides having been used; without `adapter`, that of the base model
    on both sides.
    """
    import torch

    from diffing_mcp.core.progress import silent
    from diffing_mcp.model_pairs.residency import ModelPairs
    from diffing_mcp.model_pairs.resolve import resolve_pair

    spec = resolve_pair(pair)
    if not adapter:
        spec = spec.model_copy(update={"name": "base alone", "finetuned": spec.base, "declared_identical": True})
    before = after_imports()
    with ModelPairs().use(spec, silent) as loaded:
        ids = _ids()
        for side in ("base", "finetuned"):
            loaded.forward(side, ids, torch.ones_like(ids))
        return resident_bytes() - before


def after_imports() -> int:
    """Memory once everything that either process needs is imported and has made its first allocations."""
    import nnterp
    import peft
    import torch
    import transformers

    del nnterp, peft
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        vocab_size=64,
    )
    with torch.inference_mode():
        tiny: Any = transformers.LlamaForCausalLM(config)
        tiny.to(torch.bfloat16)(input_ids=_ids() % 64)
    return resident_bytes()


def _ids() -> Any:
    import torch

    return torch.arange(1, 17).unsqueeze(0)
