"""Where float64 sums can be kept."""

from __future__ import annotations

import torch


def float64_device(device: torch.device | str) -> torch.device:
    """The device itself, or the CPU where the device has no float64 (MPS)."""
    found = torch.device(device)
    return torch.device("cpu") if found.type == "mps" else found
