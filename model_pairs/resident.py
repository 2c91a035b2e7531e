"""One full model in memory, with what hangs on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffing_mcp.core.undivided import UndividedLock

if TYPE_CHECKING:
    import torch

    from diffing_mcp.model_pairs.learned_prompt import LearnedPrompt
    from diffing_mcp.model_pairs.lora_slots import AttachedAdapter, Slot


class ResidentModel:
    """One full model in memory, and the adapters attached to it. `lock` is held by whoever switches adapters or runs a
    pass.
    """

    def __init__(
        self,
        label: str,
        model: Any,
        folder: Path,
        stop_ids: frozenset[int] = frozenset(),
        remarks: tuple[str, ...] = (),
        own_adapter: str | None = None,
        prompt: LearnedPrompt | None = None,
    ) -> None:
        self.label = label
        self.remarks = remarks
        """What is to be said about its files."""
        self.folder = folder
        self.standardized = model
        """The nnterp StandardizedTransformer."""
        self.transformer = model._model
        """The transformers model inside."""
        self.lock = UndividedLock()
        self.adapters: dict[str, AttachedAdapter] = {}
        self.own_adapter = own_adapter
        """Name of the adapter that this model has to itself; None: adapters are attached to it and switched."""
        self.prompt = prompt
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
        self.context_length: int = context_length_of(self.config) - (prompt.tokens if prompt else 0)
        """Longest text, in tokens: learned tokens in front of it take their part of what the model is made for."""
        self.stop_ids = stop_ids
        """Tokens that end a completion."""
        self.digest = ""
        """Content of all its own parameters and stored buffers, adapters left out; set when it is loaded."""

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
