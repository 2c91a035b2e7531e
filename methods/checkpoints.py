"""Checkpoints of trainings: tensors by name in one safetensors file, written whole or not at all. No pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from diffing_mcp.core.atomic_files import replace_synced

_MOMENTS = ("exp_avg", "exp_avg_sq")


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
    """Replace the checkpoint at `path`; its folder is made when needed."""
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    replace_synced(path, save(stored, metadata=dict(notes)))


def read_checkpoint(path: Path, identity: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Tensors (on the CPU) and notes of a checkpoint whose notes hold `identity`; None when there is none, it is
    another training's, or the file is no checkpoint.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            notes: dict[str, str] = file.metadata() or {}
            if any(notes.get(name) != value for name, value in identity.items()):
                return None
            return {name: file.get_tensor(name) for name in file.keys()}, notes  # noqa: SIM118
    except SafetensorError:
        return None


def adam_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adam's moments by parameter, `exp_avg|NAME` and `exp_avg_sq|NAME`; none before the first step."""
    return {
        f"{moment}|{name}": optimizer.state[value][moment]
        for name, value in parameters.items()
        if value in optimizer.state
        for moment in _MOMENTS
    }


def restore_adam(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor], steps: int
) -> None:
    """The moments of `adam_tensors` back in place, after `steps` steps."""
    for name, value in parameters.items():
        optimizer.state[value] = {
            # A fused optimiser counts on the device of the parameter, others on the CPU.
            "step": torch.tensor(float(steps), device=value.device if optimizer.defaults["fused"] else "cpu"),
            # With the strides of the parameter, which the fused optimiser takes for granted.
            **{moment: torch.empty_like(value).copy_(tensors[f"{moment}|{name}"]) for moment in _MOMENTS},
        }
