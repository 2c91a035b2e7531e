"""Time and peak memory of greedy generation against a bare loop over the same batch: transformers' forward, its keys
and values, argmax.

On the benchmark's base model, and on a narrow model made here with random weights and the vocabulary of Gemma 3.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.corpus_pass import in_turn
from benchmarks.measurement import Measurement, PeakMemory, Sizes, in_fresh_process, resident_bytes
from benchmarks.pair_memory import after_imports

ROWS = 64
PROMPT = 24
LARGE_VOCABULARY = 262_144
AIM_MEMORY = 1.1
AIM_TIME = 1.15


def run(sizes: Sizes) -> list[Measurement]:
    """The times of both loops in turn in one process, their peaks in a process each."""
    found = []
    with tempfile.TemporaryDirectory(prefix="diffing-bench-") as folder:
        for name, pair in (("", sizes.pair), (f", vocabulary of {LARGE_VOCABULARY:,}", None)):
            asked: dict[str, Any] = {"pair": pair, "folder": folder, "tokens": sizes.tokens}
            seconds = in_fresh_process(seconds_of_both, repeats=1 + sizes.repeats, **asked)
            peaks = {kind: in_fresh_process(peak, kind=kind, **asked) for kind in ("bare", "ours")}
            found += [
                Measurement(
                    name=f"generation / bare loop{name}",
                    value=seconds["ours"] / seconds["bare"],
                    unit="ratio",
                    aim=AIM_TIME,
                    detail=(
                        f"{ROWS} rows: ours {1000 * seconds['ours']:.0f} ms a token of each, bare "
                        f"{1000 * seconds['bare']:.0f} ms"
                    ),
                ),
                Measurement(
                    name=f"peak memory of generation / bare loop{name}",
                    value=peaks["ours"]["bytes"] / peaks["bare"]["bytes"],
                    unit="ratio",
                    aim=AIM_MEMORY,
                    detail=", ".join(
                        f"{kind} {each['bytes'] / 1e6:.0f} MB, {each['beyond'] / 1e6:.0f} beyond the model"
                        for kind, each in peaks.items()
                    ),
                ),
            ]
    return found


def seconds_of_both(pair: str | None, folder: str, tokens: int, repeats: int) -> dict[str, float]:
    """Seconds of a step of each loop over the same prompts, the fastest of several rounds."""
    with _loops(pair, folder, tokens, ("bare", "ours")) as loops:
        return {kind: wall / tokens for kind, (wall, _) in in_turn(loops, repeats).items()}


def peak(pair: str | None, folder: str, tokens: int, kind: str) -> dict[str, int]:
    """Bytes that the model and one such loop take at the highest, and those beyond the model once it has run a little;
    the lower of two rounds.
    """
    before = after_imports()
    found = []
    with _loops(pair, folder, tokens, (kind,)) as loops:
        for _ in range(2):
            loaded = resident_bytes()
            with PeakMemory() as memory:
                loops[kind]()
            found.append({"bytes": memory.peak - before, "beyond": memory.peak - loaded})
    return min(found, key=lambda round: round["bytes"])


@contextmanager
def _loops(
    pair: str | None, folder: str, tokens: int, kinds: tuple[str, ...]
) -> Iterator[dict[str, Callable[[], Any]]]:
    """The loops, each with a model of its own that has run a little. No token ends a text."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from diffing_mcp.core.progress import silent
    from diffing_mcp.model_pairs.files import local_folder
    from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
    from diffing_mcp.model_pairs.loading import choose_dtype, read_config
    from diffing_mcp.model_pairs.residency import ModelPairs

    spec = _large(Path(folder)) if pair is None else _base_alone(pair)
    files, text = spec.base.files, " cake" * PROMPT
    source = local_folder(files.id, files.revision, files.subfolder)
    loops: dict[str, Callable[[], Any]] = {}
    with ExitStack() as stack:
        if "bare" in kinds:
            model = AutoModelForCausalLM.from_pretrained(
                source, dtype=choose_dtype(files, read_config(files, source), "cpu")
            ).eval()
            tokenizer = AutoTokenizer.from_pretrained(source)  # held, as ours is: it takes some MB
            prompts = torch.tensor(tokenizer([text] * ROWS)["input_ids"])
            bare_loop(model, prompts[:1], 2)
            loops["bare"] = lambda: bare_loop(model, prompts, tokens)
        if "ours" in kinds:
            loaded = replace(stack.enter_context(ModelPairs().use(spec, silent)), stops=frozenset())
            stack.enter_context(loaded.sides["base"].hold()).stop_ids = frozenset()
            request = GenerationRequest(text=text)
            loaded.generate("base", [request], Sampling(temperature=0, max_new_tokens=2))
            loops["ours"] = lambda: loaded.generate(
                "base", [request], Sampling(n=ROWS, temperature=0, max_new_tokens=tokens)
            )
        yield loops


def bare_loop(model: Any, prompts: Any, tokens: int) -> None:
    """What generation costs at the least: one pass over the prompts, then one a token, and the head on contiguous last
    positions.
    """
    import torch

    new, cache = prompts, None
    head = model.get_output_embeddings()
    with torch.inference_mode():
        for _ in range(tokens):
            output = model.model(input_ids=new, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            new = head(output.last_hidden_state[:, -1].contiguous()).argmax(-1, keepdim=True)


def _base_alone(pair: str) -> Any:
    from diffing_mcp.model_pairs.resolve import resolve_pair

    spec = resolve_pair(pair)
    return spec.model_copy(update={"name": "base alone", "finetuned": spec.base, "declared_identical": True})


def _large(folder: Path) -> Any:
    """A pair of a tiny model with itself, whose vocabulary is Gemma 3's; its tokenizer is the embedded model's. Made
    once in a folder.
    """
    import torch
    import transformers

    from diffing_mcp.model_pairs.specs import ModelFiles, ModelSource, PairSpec
    from diffing_mcp.organisms.embedded import embedded_model_folder

    config = transformers.Gemma3TextConfig(
        vocab_size=LARGE_VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=2048,
    )
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(embedded_model_folder()).save_pretrained(folder)
    source = ModelSource(files=ModelFiles(id=str(folder)))
    return PairSpec(name="large vocabulary", base=source, finetuned=source, declared_identical=True)
