"""Generation through vLLM (extra `vllm`), for GPUs and many prompts. Imported only when the setting
`generation_backend` is `vllm`.

One engine a full model; an adapter rides on its base's engine as a LoRARequest, and so does a mixture of adapters
(`mixed_lora`), which the engine forgets after the call. Prompts are rendered and tokenized
here, exactly as for the transformers backend, so both see the same token ids. Each row gets its own seed; the same call
gives the same text on one machine.

The engine keeps its own copy of the weights beside the resident model, in the share of GPU memory that
`gpu_memory_utilization` leaves it.
"""

from __future__ import annotations

import gc
import itertools
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from diffing_mcp.core.errors import DiffingError, InvalidInput, OutOfRoom
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.core.settings import settings
from diffing_mcp.core.undivided import UndividedLock
from diffing_mcp.model_pairs.adapter_files import StoredAdapter, read_adapter
from diffing_mcp.model_pairs.checkpoint import read_config_file
from diffing_mcp.model_pairs.files import local_folder
from diffing_mcp.model_pairs.generation import Completion, GenerationRequest, Sampling, new_text, rows_of
from diffing_mcp.model_pairs.loading import compute_dtype
from diffing_mcp.model_pairs.wanted_models import WantedModel, wanted_model

if TYPE_CHECKING:
    import torch

    from diffing_mcp.model_pairs.forward_count import ForwardCount
    from diffing_mcp.model_pairs.mixed_lora import MixedLora
    from diffing_mcp.model_pairs.sides import LoadedSide
    from diffing_mcp.model_pairs.specs import ModelSource, PairSpec, Side

log = logging.getLogger(__name__)

_MAX_CONTEXT = 8192
"""Longest context an engine is started with: its cache is reserved for it."""
_MEMORY_SHARE = 0.4
"""Share of the GPU for one engine, beside the resident model."""
_MOST_ENGINES = 2
"""Those of a pair of full models, which is what the GPU has room for; the one that was used longest ago goes first."""
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The maximal ranks vLLM accepts."""
LARGEST_RANK = _LORA_RANKS[-1]

_engines: dict[WantedModel, Any] = {}
_merged_folders: dict[WantedModel, tempfile.TemporaryDirectory[str]] = {}
_adapter_numbers: dict[str, int] = {}
_mixture_numbers = itertools.count(1 << 20)
"""Above those of adapters. vLLM keeps adapters by number, so none may stand for two mixtures."""
_lock = UndividedLock()


class ServedPair(Protocol):
    """What an engine needs to know of a loaded pair."""

    @property
    def spec(self) -> PairSpec: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def finetuned_tokenizer(self) -> Any: ...
    @property
    def context_length(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def sides(self) -> Mapping[Side, LoadedSide]: ...
    @property
    def forwards(self) -> ForwardCount: ...

    def stop_ids(self, side: Side) -> frozenset[int]: ...


class EngineEnded(DiffingError):
    """The engine's process ended, or failed, while it wrote. The message says what to do."""

    code = "engine_ended"


class VllmMissing(DiffingError):
    """The setting asks for vLLM, which is not installed."""

    code = "missing_backend"


def takes_as_stored(source: ModelSource) -> bool:
    """Whether an engine runs a side from its files as they are; else a copy of its adapter has to be made for it
    (`mixed_lora`).
    """
    adapter = _riding_adapter(source)
    return adapter is None or (adapter.has_one_scaling and _rank(source) <= LARGEST_RANK)


def generate(
    pair: ServedPair,
    side: Side,
    requests: Sequence[GenerationRequest],
    sampling: Sampling,
    progress: Progress = silent,
    mixture: MixedLora | None = None,
) -> list[list[Completion]]:
    """`sampling.n` completions of each request, like `LoadedPair.generate`; by the bare base with a mixture of adapters
    where there is one. Cancelling works between batches of 256 rows.

    Raises:
        VllmMissing: vLLM is not installed.
        InvalidInput: as `LoadedPair.generate`.
        OutOfRoom: the engine does not start beside the resident models.
        EngineEnded: it failed; the next call starts another.
    """
    source = pair.spec.base if side == "base" else pair.spec.finetuned
    limit = min(pair.context_length, _MAX_CONTEXT)
    rows = rows_of(pair.tokenizer, requests, sampling, limit, pair.spec.base.files.thinking_switch)
    with _lock, ExitStack() as stack:
        progress(0, None, "starting the generation engine")
        engine = _engine(pair, source, limit, mixture.rank if mixture else 0)
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        lora = _lora_request(source) if mixture is None else stack.enter_context(_mixture_request(engine, mixture))
        stops = sorted(pair.stop_ids(side))
        results: list[list[Completion | None]] = [[None] * sampling.n for _ in requests]
        total = float(len(rows) * sampling.max_new_tokens)
        for start in range(0, len(rows), 256):
            batch = rows[start : start + 256]
            parameters = [
                SamplingParams(
                    n=1,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    top_k=0,
                    repetition_penalty=1.0,
                    max_tokens=sampling.max_new_tokens,
                    seed=row.seed(sampling.seed),
                    stop_token_ids=stops,
                    ignore_eos=False,
                    detokenize=False,
                )
                for row in batch
            ]
            reader = (pair.finetuned_tokenizer if side == "finetuned" else None) or pair.tokenizer
            prompts = [TokensPrompt(prompt_token_ids=row.prompt) for row in batch]
            outputs = _written(engine, prompts, parameters, lora)
            pair.forwards.add_generation(
                [len(row.prompt) for row in batch], [len(output.outputs[0].token_ids) for output in outputs]
            )
            for row, output in zip(batch, outputs, strict=True):
                ids = list(output.outputs[0].token_ids)
                stop = next((index for index, token in enumerate(ids) if token in stops), None)
                kept = ids if stop is None else ids[:stop]
                finished = stop is not None or output.outputs[0].finish_reason == "stop"
                results[row.request][row.sample] = Completion(
                    text=new_text(reader, row.prompt, kept), finish="eos" if finished else "length", tokens=len(kept)
                )
            progress(float((start + len(batch)) * sampling.max_new_tokens), total, "generating")
    return [[completion for completion in completions if completion is not None] for completions in results]


def release() -> None:
    """Stop every engine and free its memory."""
    with _lock:
        for wanted in list(_engines):
            _stop(wanted)
    gc.collect()


def _stop(wanted: WantedModel) -> None:
    """Forget an engine, and the merged model that was saved for it. Its memory is free once nobody has it any more."""
    _engines.pop(wanted, None)
    if (folder := _merged_folders.pop(wanted, None)) is not None:
        folder.cleanup()


def _written(engine: Any, prompts: Sequence[Any], parameters: Sequence[Any], lora: Any | None) -> Sequence[Any]:
    """What an engine writes. One that fails is stopped: its process may be dead, and it would fail for ever."""
    try:
        outputs: Sequence[Any] = engine.generate(prompts, parameters, lora_request=lora, use_tqdm=False)
    except Exception as error:  # errors of its own, of CUDA, of a process that is gone
        log.exception("the generation engine failed")
        for wanted in [each for each, known in _engines.items() if known is engine]:
            _stop(wanted)
        raise EngineEnded(
            f"The generation engine failed while it wrote ({type(error).__name__}) and was stopped; the log has its "
            "words. Call again: another is started. If that fails too, lower max_new_tokens, free memory of the GPU, "
            "or set generation_backend=transformers."
        ) from error
    return outputs


def _engine(pair: ServedPair, source: ModelSource, limit: int, rank: int) -> Any:
    """The running engine of this source's full model, for adapters up to this rank at least; started when needed."""
    try:
        from vllm import LLM
    except ImportError as error:
        raise VllmMissing(
            "generation_backend is `vllm`, but vLLM is not installed. Install the extra `vllm`, or set it to "
            "`transformers`."
        ) from error
    wanted = engine_model(pair, source)
    rank = max(rank, _rank(source))
    if (running := _engines.get(wanted)) is not None:
        known = running.llm_engine.vllm_config
        if rank <= known.lora_config.max_lora_rank and limit <= known.model_config.max_model_len:
            _engines[wanted] = _engines.pop(wanted)  # the last of them is the one that was used last
            return running
        del running, known
    for outdated in [key for key in _engines if replace(key, state=wanted.state) == wanted]:
        _stop(outdated)
    for idle in list(_engines)[: max(0, len(_engines) + 1 - _MOST_ENGINES)]:
        _stop(idle)
    gc.collect()
    folder = local_folder(source.files.id, source.files.revision, source.files.subfolder)
    if source.merge:
        folder = _merged_folder(pair, source, wanted)
    largest = max(rank, *(_rank(each) for each in (pair.spec.base, pair.spec.finetuned)))
    options: dict[str, Any] = {
        "model": str(folder),
        "skip_tokenizer_init": True,
        "dtype": str(wanted.dtype).removeprefix("torch."),
        "max_model_len": limit,
        "enable_lora": True,
        "max_loras": 2,
        "max_lora_rank": next((rank for rank in _LORA_RANKS if rank >= largest), LARGEST_RANK),
        "gpu_memory_utilization": _MEMORY_SHARE,
        "trust_remote_code": source.files.trust_remote_code,
    }
    if pair.device.type == "cpu":
        options["enforce_eager"] = True
        del options["gpu_memory_utilization"]
    elif pair.device.type == "cuda":
        import torch

        if settings().device == "auto" and torch.cuda.device_count() > 1:
            options["tensor_parallel_size"] = _parts(folder, torch.cuda.device_count())
    try:
        _engines[wanted] = LLM(**options)
    except (RuntimeError, ValueError) as error:
        log.exception("vLLM did not start")
        text = str(error).lower()
        if "memory" in text:
            raise OutOfRoom(
                "The generation engine does not fit beside the resident models. Unload models, or set "
                "generation_backend=transformers."
            ) from error
        raise InvalidInput(
            f"vLLM cannot run this model ({type(error).__name__}). Set generation_backend=transformers."
        ) from error
    return _engines[wanted]


def _parts(folder: Path, devices: int) -> int:
    """Over how many of the devices an engine can spread a model: its heads are shared out equally, and each of keys and
    values goes to as many devices as any other.
    """
    config = read_config_file(folder)
    text = {**config, **(config.get("text_config") or {})}
    heads = int(text.get("num_attention_heads") or text.get("n_head") or 1)
    kept = int(text.get("num_key_value_heads") or heads)
    return max(n for n in range(1, devices + 1) if heads % n == 0 and (kept % n == 0 or n % kept == 0))


def engine_model(pair: ServedPair, source: ModelSource) -> WantedModel:
    """The full model that a side's engine runs, in the type that both sides of the pair run in: engines are known by
    it, so a model that is trained again into the same folder is another one.
    """
    dtype, _ = compute_dtype(pair.spec.base.files, pair.spec.finetuned.files, pair.device.type)
    return wanted_model(source, dtype)


def _riding_adapter(source: ModelSource) -> StoredAdapter | None:
    """The adapter that is switched on its base's engine."""
    if source.adapter is None or source.merge:
        return None
    return read_adapter(local_folder(source.adapter.id, source.adapter.revision, source.adapter.subfolder))


def _rank(source: ModelSource) -> int:
    """The largest rank of the matrices of a side's adapter that rides on an engine, 0 without one."""
    adapter = _riding_adapter(source)
    if adapter is None or adapter.kind != "LORA":
        return 0
    return max((shape[0] for name, shape in adapter.shapes.items() if ".lora_A." in name and shape), default=0)


def _merged_folder(pair: ServedPair, source: ModelSource, key: WantedModel) -> Path:
    """The merged model saved once to a temporary folder, from the resident copy."""
    if key not in _merged_folders:
        temporary = tempfile.TemporaryDirectory(prefix="merged-")
        with pair.sides["finetuned" if source == pair.spec.finetuned else "base"].hold() as resident, resident.lock:
            resident.transformer.save_pretrained(temporary.name)
        _merged_folders[key] = temporary
    return Path(_merged_folders[key].name)


def _lora_request(source: ModelSource) -> Any | None:
    if source.adapter is None or source.merge:
        return None
    from vllm.lora.request import LoRARequest

    from diffing_mcp.model_pairs.adapters import adapter_name

    folder = local_folder(source.adapter.id, source.adapter.revision, source.adapter.subfolder)
    name = adapter_name(folder)
    number = _adapter_numbers.setdefault(name, len(_adapter_numbers) + 1)
    return LoRARequest(name, number, str(folder))


@contextmanager
def _mixture_request(engine: Any, mixture: MixedLora) -> Iterator[Any | None]:
    """A request for a mixture of adapters, None where nothing is mixed in; the engine forgets it afterwards."""
    if not mixture.rank:
        yield None
        return
    from vllm.lora.request import LoRARequest

    number = next(_mixture_numbers)
    with mixture.folder() as folder:
        request = LoRARequest(f"mixture-{number}", number, str(folder))
        try:
            yield request
        finally:
            try:
                engine.llm_engine.remove_lora(number)
            except Exception:  # of an engine that has ended, whose own error is the one to be told
                log.warning("the engine did not forget an adapter", exc_info=True)
