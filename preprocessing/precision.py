"""Which type a pair computes in, and where float64 sums can be kept. Torch is imported when it is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from diffing_mcp.model_pairs.pair import LoadedPair


def float64_device(device: torch.device | str) -> torch.device:
    """The device itself, or the CPU where the device has no float64 (MPS)."""
    import torch

    found = torch.device(device)
    return torch.device("cpu") if found.type == "mps" else found


def model_dtype(pair: LoadedPair) -> torch.dtype:
    """The dtype that both models are loaded in. Loads nothing."""
    from diffing_mcp.model_pairs.loading import compute_dtype

    return compute_dtype(pair.spec.base.files, pair.spec.finetuned.files, pair.device.type)[0]
