"""Loads one full model into memory: device and dtype chosen, wrapped by nnterp so that every architecture has the same
module names.

torch, transformers and nnterp are imported when a model is loaded, not before.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffing_mcp.core.attention import attention_of
from diffing_mcp.core.devices import choose_device, device_dtype
from diffing_mcp.core.errors import InvalidInput, OutOfRoom
from diffing_mcp.core.settings import settings
from diffing_mcp.model_pairs.checkpoint import (
    check_kind,
    check_landed,
    check_stored_types,
    config_problem,
    load_problem,
    model_class,
    read_config_file,
    weight_paths,
    without_adapter,
)
from diffing_mcp.model_pairs.files import brings_tokenizer, local_folder
from diffing_mcp.model_pairs.fingerprint import stored_bytes
from diffing_mcp.model_pairs.precision import computed_dtype, pair_dtype
from diffing_mcp.model_pairs.resident import ResidentModel
from diffing_mcp.model_pairs.specs import ModelFiles

if TYPE_CHECKING:
    import torch

    from diffing_mcp.model_pairs.adapter_files import StoredAdapter

log = logging.getLogger(__name__)


def choose_dtype(files: ModelFiles, config: Any, device: str) -> torch.dtype:
    """The settings' dtype as it is, else the source's, else the one that the configuration names, as `device_dtype` has
    it.
    """
    stored: Any = files.dtype
    if stored == "auto":
        stored = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None) or "float32"
    return device_dtype(computed_dtype(str(stored).removeprefix("torch.")), device)


def compute_dtype(base: ModelFiles, finetuned: ModelFiles, device: str) -> tuple[torch.dtype, tuple[str, ...]]:
    """The one dtype that both sides of a pair run in on a device, and what is to be said about it. Loads nothing.

    Raises:
        InvalidInput: files that are damaged or not there.
    """
    name, remarks = pair_dtype(base, finetuned)
    return device_dtype(name, device), remarks


def memory_limit(device: str | None = None) -> int:
    """Bytes that resident models may take: `memory_share` of the GPUs' memory, or of this machine's (or its control
    group's).
    """
    import torch

    device = device or choose_device()
    if device == "auto":
        total = sum(torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count()))
    elif device.startswith("cuda"):
        total = torch.cuda.get_device_properties(torch.device(device)).total_memory
    else:
        import psutil

        total = psutil.virtual_memory().total
        group = Path("/sys/fs/cgroup/memory.max")
        if group.is_file() and (text := group.read_text().strip()).isdigit():
            total = min(total, int(text))
    return int(total * settings().memory_share)


def read_config(files: ModelFiles, folder: Path) -> Any:
    """The model's transformers configuration. Raises InvalidInput when it cannot be read, or is not that of a causal
    language model.
    """
    from transformers import AutoConfig

    stored = read_config_file(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=files.trust_remote_code)
    except Exception as error:  # code of the architecture runs here: anything may be raised
        log.info("configuration not read", exc_info=True)
        raise InvalidInput(config_problem(stored, error)) from error
    check_kind(config, stored)
    return config


def estimated_bytes(files: ModelFiles, dtype: torch.dtype) -> int:
    """Bytes the model will take in memory in this dtype, from the headers of its files, without loading it."""
    return stored_bytes(local_folder(files.id, files.revision, files.subfolder), dtype.itemsize)


def read_tokenizer(files: ModelFiles, rows: int) -> Any | None:
    """The tokenizer of a source, padding on the left with a token that the model has one of its `rows` for; None when
    the source brings none.

    Padding is masked wherever it stands, so which token it is means nothing; but a model cannot look up one that it has
    no row for (a token added for padding without resizing the model).
    """
    from transformers import AutoTokenizer

    folder = (
        local_folder(files.tokenizer_id)
        if files.tokenizer_id
        else local_folder(files.id, files.revision, files.subfolder)
    )
    if not brings_tokenizer(folder):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=files.trust_remote_code, padding_side="left"
        )
    except Exception as error:  # tokenizers raise bare exceptions, and missing packages ImportError
        log.info("tokenizer not read", exc_info=True)
        needs = (
            f": {str(error).strip().splitlines()[0]}" if isinstance(error, ImportError) and str(error).strip() else ""
        )
        raise InvalidInput(
            f"The tokenizer of this model cannot be read ({type(error).__name__}{needs}). Name one with `tokenizer_id` "
            "in a catalogue folder, or save it again with `save_pretrained`."
        ) from error
    if files.chat_template:
        tokenizer.chat_template = files.chat_template
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        end = tokenizer.eos_token_id
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(end if end is not None and end < rows else 0)
    _leave_texts_open(tokenizer)
    return tokenizer


def _leave_texts_open(tokenizer: Any) -> None:
    """Let a tokenizer write nothing behind a text. Many that come out of training put an end of sequence there
    (`add_eos_token`): a prompt would be over before its answer begins, and a text have a last token that nobody wrote.
    """
    from tokenizers.processors import TemplateProcessing

    whole, bare = (tokenizer("a", add_special_tokens=add)["input_ids"] for add in (True, False))
    before = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), None)
    if before is None or before + len(bare) == len(whole) or not tokenizer.is_fast:
        return
    start = list(zip(tokenizer.convert_ids_to_tokens(whole[:before]), whole[:before], strict=True))
    written = [token for token, _ in start]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*written, "$A"], pair=[*written, "$A", "$B"], special_tokens=sorted(set(start))
    )


def load_model(
    files: ModelFiles,
    label: str,
    tokenizer: Any,
    dtype: torch.dtype | None = None,
    adapter: StoredAdapter | None = None,
    merge: bool = False,
) -> ResidentModel:
    """Load a full model in `dtype` (None: its own); with `adapter`, one that has this adapter for good: put on as peft
    does, or merged.

    Raises:
        InvalidInput: no safetensors weights, unreadable or incomplete files, an architecture nnterp has no names for,
            or one whose tokens see those after them.
        NotTheSame: the adapter to merge is not one of this model.
        OutOfRoom: the device's memory does not hold it.
    """
    import torch
    from transformers import GenerationConfig

    from diffing_mcp.model_pairs.adapted_model import adapted, merged
    from diffing_mcp.model_pairs.adapter_files import OWN_ADAPTER
    from diffing_mcp.model_pairs.causality import check_causal
    from diffing_mcp.model_pairs.finite import check_output
    from diffing_mcp.model_pairs.forward import input_check, make_head_input_contiguous
    from diffing_mcp.model_pairs.weight_digest import base_digest

    folder = local_folder(files.id, files.revision, files.subfolder)
    config, stored = read_config(files, folder), read_config_file(folder)
    check_stored_types(weight_paths(folder), stored)
    device = choose_device()
    if settings().threads:
        torch.set_num_threads(settings().threads or 1)
    options: dict[str, Any] = {
        "dtype": dtype or compute_dtype(files, files, device)[0],
        "use_safetensors": True,
        "trust_remote_code": files.trust_remote_code,
        "output_loading_info": True,
    }
    if device != "cpu":
        options["device_map"] = device if device == "auto" else {"": device}
    if attention := attention_of(files.attn_implementation, config.get_text_config().to_dict()):
        options["attn_implementation"] = attention
    try:
        with without_adapter(folder) as bare:
            transformer, info = _auto_class(config).from_pretrained(bare, **options)
    except (
        Exception
    ) as error:  # code of the architecture and of quantisation packages runs here: anything may be raised
        log.info("loading failed", exc_info=True)
        _raise_if_out_of_room(error, folder)
        raise InvalidInput(load_problem(stored, error)) from error
    remarks = check_landed(transformer, info)
    _check_in_memory(transformer, folder)
    transformer = transformer.eval().requires_grad_(False)
    changed = None
    try:
        if adapter is not None and merge:
            transformer = merged(transformer, adapter)
        elif adapter is not None:
            changed = adapted(transformer, adapter)
            transformer = changed.transformer
        make_head_input_contiguous(transformer)
    except (torch.OutOfMemoryError, MemoryError) as error:
        _raise_if_out_of_room(error, folder)
    wrapped = _with_standard_names(transformer, tokenizer)
    check_causal(transformer)
    stops = stop_tokens(transformer, tokenizer, files)
    # The checkpoint's own sampling defaults (penalties, temperatures) must not slip into comparisons: generation states
    # all of them.
    transformer.generation_config = GenerationConfig()
    own = (None, None) if changed is None else (OWN_ADAPTER, changed.prompt)
    resident = ResidentModel(label, wrapped, folder, stops, remarks, *own)
    resident.digest = base_digest(resident)
    # Whoever runs a pass, what goes in and what comes out is checked.
    transformer.register_forward_pre_hook(input_check(resident.vocab_size, tokenizer), with_kwargs=True)
    transformer.register_forward_hook(check_output, with_kwargs=True)
    return resident


def _auto_class(config: Any) -> Any:
    """The auto class that loads this configuration; code that comes with a model registers itself for causal language
    models.
    """
    from transformers import AutoModelForCausalLM

    return model_class(config) or AutoModelForCausalLM


def _raise_if_out_of_room(error: Exception, folder: Path) -> None:
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in str(error).lower():
        raise OutOfRoom(
            f"The model does not fit: it takes about {stored_bytes(folder, 2) >> 20} MB in 16 bits."
        ) from error


def _check_in_memory(transformer: Any, folder: Path) -> None:
    """Raise OutOfRoom for a model of which a `device_map` has left a part elsewhere: it would run from the disk, and
    its weights could not be read.
    """
    if any(tensor.is_meta for tensor in transformer.parameters()):
        raise OutOfRoom(
            "The model does not fit into the free memory of the devices: it takes about "
            f"{stored_bytes(folder, 2) >> 20} MB in 16 bits. Free them (`nvidia-smi` says who has them), unload "
            "models, or name other devices with CUDA_VISIBLE_DEVICES."
        )


def _with_standard_names(transformer: Any, tokenizer: Any) -> Any:
    """The model wrapped by nnterp. Raises InvalidInput for an architecture whose modules it cannot name."""
    from diffing_mcp.model_pairs.standard_names import with_standard_names

    try:
        return with_standard_names(transformer, tokenizer)
    except Exception as error:  # nnterp runs a pass to check its names: an unknown architecture breaks it anywhere
        log.info("nnterp has no names", exc_info=True)
        raise InvalidInput(
            f"The architecture {type(transformer).__name__} cannot be read: nnterp has no standard names for its "
            "modules (it has none for state-space and recurrent models, and for some decoders). Name a model of "
            "another architecture, such as Llama, Qwen, Gemma, Mistral or OLMo."
        ) from error


def stop_tokens(transformer: Any, tokenizer: Any, files: ModelFiles) -> frozenset[int]:
    """Ids that end a completion by the model's own files: the checkpoint's, and the end of a turn that is named.

    The ends of sequence of a pair's tokenizers come on top (`PairTokenizers.stops`): a model in memory is shared by
    pairs that are read with different ones.
    """
    stored = getattr(transformer.generation_config, "eos_token_id", None)
    stops = set(stored if isinstance(stored, list) else [] if stored is None else [stored])
    vocabulary = tokenizer.get_vocab()
    if files.end_of_turn_token in vocabulary:
        stops.add(vocabulary[files.end_of_turn_token])
    return frozenset(stops)
