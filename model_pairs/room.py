"""How much memory a batch of texts takes, and how much is free: batches are made to fit before the first pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffing_mcp.core.errors import OutOfRoom
from diffing_mcp.core.settings import settings

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.resident import ResidentModel

LOGIT_BYTES = 512 * 2**20
"""Bytes of one side's logits in a batch at most; a large vocabulary gets smaller batches than
`settings().batch_tokens`.
"""
USABLE_SHARE = 0.9
"""Of the free memory: the rest is for what the estimate leaves out."""
_WINDOWED = ("sliding_attention", "chunked_attention")
_FLOAT32 = 4


@dataclass(frozen=True)
class RowCost:
    """Bytes that one row of a batch takes while it is generated."""

    logits: int
    """For the logits of one position."""
    cached: tuple[tuple[int, int | None], ...]
    """Keys and values: bytes a token, and how many tokens are kept (None: all), for each kind of layer."""
    token: int
    """A token of the prompt in its pass: the widest layer's activations."""
    token_pair: int
    """Two tokens of the prompt in its pass: masks, and where attention writes its scores out, those."""

    def cache(self, tokens: int) -> int:
        """Bytes of the keys and values of so many tokens."""
        return sum(size * (tokens if most is None else min(tokens, most)) for size, most in self.cached)

    def bytes(self, prompt: int, new: int) -> int:
        """At the highest, for a prompt and at most so many new tokens. The pass over the prompt and the last token do
        not coincide.
        """
        reading = self.cache(prompt) + prompt * self.token + prompt * prompt * self.token_pair
        writing = self.cache(prompt + new) + (prompt + new) * max((size for size, _ in self.cached), default=0)
        return self.logits + max(reading, writing)


def row_cost(config: Any, vocab_size: int, itemsize: int) -> RowCost:
    """The cost of a row from a model's (text) configuration: an estimate from above for plain transformers, `itemsize`
    bytes a number.
    """
    width, heads, layers = int(config.hidden_size), int(config.num_attention_heads), _layers_of(config)
    kept: dict[int | None, int] = {}
    inner = head = 0
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * len(layers)
    for kind, layer in zip(kinds, layers, strict=False):
        own_head = getattr(layer, "head_dim", None) or width // heads
        size = 2 * (getattr(layer, "num_key_value_heads", None) or heads) * own_head * itemsize
        if getattr(layer, "kv_lora_rank", None):  # latent: keys and values are kept for all heads, of two widths
            size = heads * (layer.qk_nope_head_dim + layer.qk_rope_head_dim + layer.v_head_dim) * itemsize
        window = getattr(layer, "sliding_window", None) or getattr(layer, "attention_chunk_size", None)
        most = window if kind in _WINDOWED else None
        kept[most] = kept.get(most, 0) + size
        own_inner = getattr(layer, "intermediate_size", None) or getattr(layer, "n_inner", None) or 4 * width
        inner, head = max(inner, own_inner), max(head, own_head)
    written_out = heads * (itemsize + _FLOAT32) if getattr(config, "_attn_implementation", None) == "eager" else 0
    return RowCost(
        logits=vocab_size * (2 * itemsize + _FLOAT32),
        cached=tuple((size, most) for most, size in kept.items()),
        token=itemsize * (6 * width + 3 * inner + 6 * heads * head) + 2 * _FLOAT32 * width,
        token_pair=2 + itemsize + written_out,
    )


def _layers_of(config: Any) -> list[Any]:
    """The configuration of every layer: one for all, but where layers differ (Gemma 4), which asks for each of them."""
    if getattr(config, "is_heterogeneous", False):
        return list(config.per_layer_config)
    return [config] * int(config.num_hidden_layers)


def cost_of(resident: ResidentModel) -> RowCost:
    """The cost of a row on a model that is in memory."""
    return row_cost(resident.config, resident.vocab_size, resident.dtype.itemsize)


def most_rows(costs: Sequence[RowCost], prompt: int, new: int, free: int) -> int:
    """How many rows of a prompt and at most so many new tokens fit in `free` bytes, when each is read by models of
    these costs.

    Raises:
        OutOfRoom: not one does.
    """
    needed = sum(cost.bytes(prompt, new) for cost in costs)
    if needed > free:
        kept = sum(cost.cache(prompt + new) for cost in costs)
        raise OutOfRoom(
            f"One text of {prompt} prompt tokens and up to {new} new ones takes about {_megabytes(needed)}, "
            f"{_megabytes(kept)} of them keys and values; {_megabytes(free)} are free. Lower max_new_tokens or shorten "
            "the prompt, unload models, or lower memory_share so that fewer stay loaded."
        )
    return free // needed


def logit_tokens(vocab_size: int, itemsize: int) -> int:
    """Tokens of a batch whose logits [tokens, V] are read, `itemsize` bytes a number."""
    return min(settings().batch_tokens, max(1, LOGIT_BYTES // (itemsize * vocab_size)))


def check_logits(tokens: int, vocab_size: int, itemsize: int, free: int) -> None:
    """Raise OutOfRoom when the logits of both sides for a batch of so many tokens do not fit in `free` bytes."""
    needed = 2 * tokens * vocab_size * itemsize
    if needed > free:
        raise OutOfRoom(
            f"The logits of both models for a batch of {tokens} tokens take {_megabytes(needed)}, and "
            f"{_megabytes(free)} are free. Lower max_tokens, unload models, or lower memory_share so that fewer stay "
            "loaded."
        )


def devices_of(resident: ResidentModel) -> set[torch.device]:
    """The devices that hold the model's weights."""
    return {parameter.device for parameter in resident.transformer.parameters()}


def free_bytes(devices: Iterable[torch.device]) -> int:
    """Bytes that work on these devices may take: a share of what the GPUs, or this machine or its control group, have
    free now.
    """
    gpus = [device for device in devices if device.type == "cuda"]
    if gpus:
        # What torch has reserved and does not use is free to the next pass.
        unused = sum(torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu) for gpu in gpus)
        return int(USABLE_SHARE * (unused + sum(torch.cuda.mem_get_info(gpu)[0] for gpu in gpus)))
    import psutil

    return int(USABLE_SHARE * min(psutil.virtual_memory().available, free_in_group()))


def free_in_group(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes left to this control group, file pages that can be dropped counted as free; without a limit a number that
    limits nothing.
    """
    limit, current, statistics = folder / "memory.max", folder / "memory.current", folder / "memory.stat"
    if not (limit.is_file() and current.is_file() and (text := limit.read_text().strip()).isdigit()):
        return 1 << 62
    droppable = 0
    if statistics.is_file():
        droppable = sum(
            int(line.split()[1])
            for line in statistics.read_text().splitlines()
            if line.split()[0] in ("inactive_file", "active_file")
        )
    return max(0, int(text) - int(current.read_text()) + droppable)


def _megabytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MB" if count >= 2**20 else f"{count / 2**20:.2f} MB"
