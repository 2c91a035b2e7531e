"""What this machine's processor computes well. Imports torch when asked."""


def cpu_computes_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices faster than float32 ones: with AVX-512 or AMX (oneDNN's own test),
    or on ARM.
    """
    import platform

    import torch

    if platform.machine().lower() in ("arm64", "aarch64"):
        return True
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
