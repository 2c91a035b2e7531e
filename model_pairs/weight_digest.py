"""Names for weights as they are in memory, by content: what a run compared, and the proof that nothing changed a base
behind its back.

A digest reads every value once at the speed of memory (a sum of 64-bit words along both axes of a table of the raw
bytes, hashed with name, shape and type), so that it can be taken before and after every attached adapter. Any single
changed value changes it, and so does any exchange of two values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.resident import ResidentModel

_COLUMNS = 4096
_WORD = 8


def tensors_digest(named: Iterable[tuple[str, torch.Tensor]]) -> str:
    """`weights:` and 32 hex digits over names, shapes, types and all values of these tensors, in their order."""
    digest = hashlib.sha256()
    with torch.inference_mode():
        for name, tensor in named:
            digest.update(f"{name}\n{tuple(tensor.shape)}\n{tensor.dtype}\n".encode())
            digest.update(_sums(tensor.detach()))
    return f"weights:{digest.hexdigest()[:32]}"


def base_digest(resident: ResidentModel) -> str:
    """Digest of a model's own parameters and stored buffers, by their names in the bare model, whatever adapters hang
    on it. The caller holds `resident.lock`.
    """
    from diffing_mcp.model_pairs.modules import parameters_of
    from diffing_mcp.model_pairs.stored_buffers import stored_tensors

    return tensors_digest(chain(parameters_of(resident), stored_tensors(resident)))


def _sums(tensor: torch.Tensor) -> bytes:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8)
    whole = raw.numel() // _WORD * _WORD
    words = raw[:whole].view(torch.int64)
    table = words[: words.numel() // _COLUMNS * _COLUMNS].view(-1, _COLUMNS)
    rest = bytes(words[table.numel() :].cpu().numpy().tobytes()) + bytes(raw[whole:].cpu().numpy().tobytes())
    return bytes(table.sum(0).cpu().numpy().tobytes()) + bytes(table.sum(1).cpu().numpy().tobytes()) + rest


def side_digest(model: str, adapter: str | None, steering: Iterable[tuple[int, float, torch.Tensor]] = ()) -> str:
    """Digest of what one side runs: its model's digest, the content name of an adapter attached to it, and (layer,
    strength, vector) of its steering.
    """
    digest = hashlib.sha256(f"{model}\n{adapter or ''}\n".encode())
    for layer, strength, vector in steering:
        digest.update(f"{layer} {strength}\n".encode() + _sums(vector))
    return f"weights:{digest.hexdigest()[:32]}"
