"""Which device models run on, and in which floats: as the settings say, else what the machine computes fast."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.settings import settings

if TYPE_CHECKING:
    import torch


def choose_device() -> str:
    """`auto` of the settings made concrete: all GPUs (`auto`, a device map), the GPU, Apple's, or the CPU."""
    import torch

    wanted = settings().device
    if wanted != "auto":
        if wanted.startswith("cuda") and not torch.cuda.is_available():
            raise InvalidInput(
                f"The setting device={wanted} names a GPU, but torch sees none here. Set DIFFING_DEVICE=auto or cpu."
            )
        return wanted
    if torch.cuda.is_available():
        return "auto" if torch.cuda.device_count() > 1 else "cuda:0"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def one_device() -> str:
    """`choose_device` for what is not spread over several (training, sampling): of all GPUs the first. Apple's is taken
    only where the settings name it, as nothing was ever trained on one.
    """
    chosen = choose_device()
    if chosen == "auto":
        return "cuda:0"
    return "cpu" if chosen == "mps" and settings().device == "auto" else chosen


def device_dtype(name: str, device: str) -> torch.dtype:
    """The settings' dtype, else the named one where the device computes it.

    On a CPU that has no instructions for 16-bit floats, 16-bit checkpoints run in float32: the same weights, several
    times as fast and exact, for twice the memory. The setting `dtype` forces another choice.
    """
    import torch

    if settings().dtype != "auto":
        return getattr(torch, settings().dtype)
    return fast_dtype(getattr(torch, name), device)


def fast_dtype(dtype: torch.dtype, device: str) -> torch.dtype:
    """The dtype itself where the device has instructions for it, else float32."""
    import torch

    slow = dtype == torch.float16 or (dtype == torch.bfloat16 and not cpu_computes_bfloat16())
    return torch.float32 if device == "cpu" and slow else dtype


def cpu_computes_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices faster than float32 ones: with AVX-512 or AMX (oneDNN's own test),
    or on ARM.
    """
    import platform

    import torch

    if platform.machine().lower() in ("arm64", "aarch64"):
        return True
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def wide_dtype(device: torch.device) -> torch.dtype:
    """What sums over many positions are kept in: float64 where the device has it."""
    import torch

    return torch.float32 if device.type == "mps" else torch.float64
