"""Loads one full model into memory: device and dtype chosen, wrapped by nnterp so that every architecture has the same module names.

torch, transformers and nnterp are imported when a model is loaded, not before.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_pairs.files import local_folder
from model_pairs.fingerprint import stored_bytes
from model_pairs.specs import ModelFiles
from organisms.errors import DiffingError, InvalidInput, OutOfRoom
from organisms.settings import settings

if TYPE_CHECKING:
    import torch

    from model_pairs.adapted_model import AdaptedModel
    from model_pairs.adapter_files import StoredAdapter
    from model_pairs.adapters import AttachedAdapter, Slot

log = logging.getLogger(__name__)


class ResidentModel:
    """One full model in memory, and the adapters attached to it. `lock` is held by whoever switches adapters or runs a pass."""

    def __init__(
        self, label: str, model: Any, folder: Path, stop_ids: frozenset[int] = frozenset(), adapted: AdaptedModel | None = None
    ) -> None:
        """`adapted`: the model has an adapter to itself, which is on for good."""
        from model_pairs.adapted_model import OWN_ADAPTER
        from model_pairs.weight_digest import base_digest

        self.label = label
        self.folder = folder
        self.standardized = model
        """The nnterp StandardizedTransformer."""
        self.transformer = model._model
        """The transformers model inside."""
        self.lock = threading.RLock()
        self.adapters: dict[str, AttachedAdapter] = {}
        self.own_adapter = OWN_ADAPTER if adapted is not None else None
        """Name of the adapter that this model has to itself; None: adapters are attached to it and switched."""
        self.prompt = adapted.prompt if adapted is not None else None
        """Learned tokens that it reads in front of every text."""
        self.active: str | None = self.own_adapter
        """Name of the adapter that passes use now; None: the bare model."""
        self.spoiled = False
        """An adapter changed the base's weights: nothing may run on it any more."""
        self.slots: list[Slot] = []
        """Where LoRA layers belong."""
        self.config = self.transformer.config.get_text_config()
        self.num_layers: int = model.num_layers
        self.d_model: int = int(model.hidden_size)
        embedding = self.transformer.get_input_embeddings().weight
        self.vocab_size: int = int(self.transformer.get_output_embeddings().weight.shape[0])
        self.device: torch.device = embedding.device
        self.dtype: torch.dtype = embedding.dtype
        self.context_length: int = context_length_of(self.config)
        self.stop_ids = stop_ids
        """Tokens that end a completion."""
        self.digest = base_digest(self)
        """Content of all its own parameters, adapters left out."""

    def layer_module(self, layer: int) -> torch.nn.Module:
        """The torch module of block `layer`."""
        return self.standardized.layers[layer]._module

    def release(self) -> None:
        """Let go of the weights, even where somebody still holds this object."""
        with self.lock:
            self.adapters.clear()
            self.slots.clear()
            del self.standardized, self.transformer

    def bytes(self) -> int:
        """Bytes of parameters and buffers of the model and its adapters, shared storage counted once."""
        with self.lock:
            tensors: dict[int, int] = {}
            for tensor in (*self.transformer.parameters(), *self.transformer.buffers()):
                tensors[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            for adapter in self.adapters.values():
                for tensor in adapter.tensors():
                    tensors[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return sum(tensors.values())


def context_length_of(config: Any) -> int:
    """Longest sequence, in tokens, that the model is made for; 2**20 when the configuration does not say."""
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 1 << 20


def choose_device() -> str:
    """`auto` of the settings made concrete: all GPUs (`auto`, a device map), the GPU, Apple's, or the CPU."""
    import torch

    wanted = settings().device
    if wanted != "auto":
        if wanted.startswith("cuda") and not torch.cuda.is_available():
            raise InvalidInput(f"The setting device={wanted} names a GPU, but torch sees none here. Set DIFFING_DEVICE=auto or cpu.")
        return wanted
    if torch.cuda.is_available():
        return "auto" if torch.cuda.device_count() > 1 else "cuda:0"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def choose_dtype(files: ModelFiles, config: Any, device: str) -> torch.dtype:
    """The settings' dtype as it is, else the source's, else the checkpoint's.

    On a CPU that has no instructions for 16-bit floats, 16-bit checkpoints run in float32: the same weights, several times as fast and exact, for twice
    the memory. The setting `dtype` forces another choice.
    """
    import torch

    if settings().dtype != "auto":
        return getattr(torch, settings().dtype)
    stored: Any = files.dtype
    if stored == "auto":
        stored = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None) or torch.float32
    dtype = getattr(torch, stored) if isinstance(stored, str) else stored
    slow = dtype == torch.float16 or (dtype == torch.bfloat16 and not cpu_computes_bfloat16())
    return torch.float32 if device == "cpu" and slow else dtype


def cpu_computes_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices faster than float32 ones: with AVX-512 or AMX (oneDNN's own test), or on ARM."""
    import platform

    import torch

    if platform.machine().lower() in ("arm64", "aarch64"):
        return True
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def memory_limit(device: str | None = None) -> int:
    """Bytes that resident models may take: `memory_share` of the GPUs' memory, or of this machine's (or its control group's)."""
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
    """The model's transformers configuration. Raises InvalidInput when it cannot be read."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=files.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(
            "The configuration of this model cannot be read: the folder needs a config.json of an architecture that transformers knows. "
            f"({type(error).__name__})"
        ) from error


def estimated_bytes(files: ModelFiles) -> int:
    """Bytes the model will take in memory, from the headers of its files, without loading it."""
    folder = local_folder(files.id, files.revision, files.subfolder)
    dtype = choose_dtype(files, read_config(files, folder), choose_device())
    return stored_bytes(folder, dtype.itemsize)


def read_tokenizer(files: ModelFiles) -> Any | None:
    """The tokenizer of a source, padding on the left, with a padding token; None when the source brings none."""
    from transformers import AutoTokenizer

    folder = local_folder(files.tokenizer_id) if files.tokenizer_id else local_folder(files.id, files.revision, files.subfolder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=files.trust_remote_code, padding_side="left")
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(f"The tokenizer of this model cannot be read ({type(error).__name__}). Name one with `tokenizer_id`.") from error
    if files.chat_template:
        tokenizer.chat_template = files.chat_template
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def load_model(files: ModelFiles, label: str, tokenizer: Any, adapter: StoredAdapter | None = None, merge: bool = False) -> ResidentModel:
    """Load a full model; with `adapter`, one that has this adapter for good: put on as peft does, or merged into its weights.

    Raises:
        InvalidInput: no safetensors weights, unreadable files, or an architecture nnterp has no names for.
        NotTheSame: the adapter to merge is not one of this model.
        OutOfRoom: the device's memory does not hold it.
    """
    import torch
    from nnterp import StandardizedTransformer
    from nnterp.rename_utils import RenamingError
    from transformers import AutoModelForCausalLM, GenerationConfig

    from model_pairs.adapted_model import adapted, merged
    from model_pairs.forward import make_head_input_contiguous

    folder = local_folder(files.id, files.revision, files.subfolder)
    config = read_config(files, folder)
    device = choose_device()
    if settings().threads:
        torch.set_num_threads(settings().threads or 1)
    options: dict[str, Any] = {"dtype": choose_dtype(files, config, device), "use_safetensors": True, "trust_remote_code": files.trust_remote_code}
    if device != "cpu":
        options["device_map"] = device if device == "auto" else {"": device}
    if files.attn_implementation:
        options["attn_implementation"] = files.attn_implementation
    try:
        transformer = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
        transformer.requires_grad_(False)
        changed = None
        if adapter is not None and merge:
            transformer = merged(transformer, adapter)
        elif adapter is not None:
            changed = adapted(transformer, adapter)
            transformer = changed.transformer
        make_head_input_contiguous(transformer)
        # A model given as a module is dispatched from the start: an adapter attached later lands on the real weights, not on a placeholder.
        wrapped = StandardizedTransformer(transformer, tokenizer=tokenizer, allow_multimodal=True)
    except DiffingError:
        raise
    except RenamingError as error:
        raise InvalidInput(
            f"The architecture {type(transformer).__name__} has no standard module names in nnterp, so it cannot be read: {error}"
        ) from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfRoom(f"The model does not fit: it takes about {stored_bytes(folder, 2) >> 20} MB in 16 bits.") from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        log.exception("loading failed")
        if "out of memory" in str(error).lower():
            raise OutOfRoom(f"The model does not fit: it takes about {stored_bytes(folder, 2) >> 20} MB in 16 bits.") from error
        raise InvalidInput(
            f"The weights of this model cannot be read ({type(error).__name__}). It needs config.json and *.safetensors of a causal language model."
        ) from error
    stops = stop_tokens(transformer, tokenizer, files)
    # The checkpoint's own sampling defaults (penalties, temperatures) must not slip into comparisons: generation states all of them.
    transformer.generation_config = GenerationConfig()
    return ResidentModel(label, wrapped, folder, stops, changed)


def stop_tokens(transformer: Any, tokenizer: Any, files: ModelFiles) -> frozenset[int]:
    """Ids that end a completion: the checkpoint's, the tokenizer's end of sequence, and the end of a turn."""
    stored = getattr(transformer.generation_config, "eos_token_id", None)
    stops = set(stored if isinstance(stored, list) else [] if stored is None else [stored])
    if tokenizer.eos_token_id is not None:
        stops.add(tokenizer.eos_token_id)
    vocabulary = tokenizer.get_vocab()
    if files.end_of_turn_token in vocabulary:
        stops.add(vocabulary[files.end_of_turn_token])
    return frozenset(stops)
