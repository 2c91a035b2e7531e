"""An amplified side as one LoRA on the bare base, for engines that take adapters and no hooks: scaled copies of the
adapters' matrices, side by side. Written to a folder in memory where there is one, and removed after use.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from diffing_mcp.model_pairs.modules import Unit, units_of

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.sides import LoadedSide

_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class MixedLora:
    """Module name in the bare model -> A [rank, in] and B [out, rank], scaling included; one rank for all."""

    matrices: Mapping[str, tuple[torch.Tensor, torch.Tensor]]

    @property
    def rank(self) -> int:
        return max((first.shape[0] for first, _ in self.matrices.values()), default=0)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """As peft stores adapters, for as long as the context lasts."""
        from safetensors.torch import save_file

        tensors = {}
        for name, (first, second) in self.matrices.items():
            more = self.rank - first.shape[0]
            padded = torch.nn.functional.pad(first, (0, 0, 0, more)), torch.nn.functional.pad(second, (0, more))
            for letter, matrix in zip("AB", padded, strict=True):
                tensors[f"base_model.model.{name}.lora_{letter}.weight"] = matrix.contiguous()
        with tempfile.TemporaryDirectory(prefix="mixed-", dir=_MEMORY if _MEMORY.is_dir() else None) as place:
            save_file(tensors, Path(place) / "adapter_model.safetensors")
            config = {
                "peft_type": "LORA",
                "r": self.rank,
                "lora_alpha": self.rank,
                "target_modules": sorted({name.rsplit(".", 1)[-1] for name in self.matrices}),
            }
            (Path(place) / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
            yield Path(place)


def mixed_lora(side: LoadedSide) -> MixedLora | None:
    """What an amplified side adds to the bare base; None where that is more than plain LoRA on linear layers inside of
    blocks: full finetunes, biases, embeddings, replaced modules, steering vectors.
    """
    if side.steering:
        return None
    with ExitStack() as stack:
        resident = stack.enter_context(side.hold())
        for other in (each for difference in side.differences for each in (difference.finetuned, difference.origin)):
            if stack.enter_context(other.hold()) is not resident:
                return None
        stack.enter_context(resident.lock)
        plain = units_of(resident, None)
        names = {side.adapter, *(each.finetuned.adapter for each in side.differences)}
        names |= {each.origin.adapter for each in side.differences}
        units = {name: units_of(resident, name) for name in names if name is not None}
        scaled: dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]] = {}
        for module, bare in plain.items():
            weights = dict.fromkeys(units, 0.0)
            shares = [(side.adapter, 1.0)]
            for each in side.differences:
                weight = each.weight(bare.place)
                shares += [(each.finetuned.adapter, weight), (each.origin.adapter, -weight)]
            for adapter, share in shares:
                if adapter is not None:
                    weights[adapter] += share
            for adapter, total in weights.items():
                unit = units[adapter].get(module)
                if unit is not None and unit.plain and unit.bare is bare.bare:
                    continue
                part = None if unit is None or bare.place.layer is None else _scaled(unit, bare, total)
                if part is None:
                    return None
                scaled.setdefault(module, {})[adapter] = part
    counting = {adapter for parts in scaled.values() for adapter, (_, second) in parts.items() if second.any()}
    matrices = {}
    for module, parts in scaled.items():
        if kept := [part for adapter, part in parts.items() if adapter in counting]:
            firsts, seconds = zip(*kept, strict=True)
            matrices[module] = torch.cat(firsts), torch.cat(seconds, dim=1)
    return MixedLora(matrices)


def _scaled(unit: Unit, bare: Unit, weight: float) -> tuple[torch.Tensor, torch.Tensor] | None:
    lora = unit.lora()
    if lora is None or lora[2] is not None or unit.bare is not bare.bare:
        return None
    first, second, _, scaling = lora
    return first.detach().cpu(), (second.detach().float() * (weight * scaling)).to(second.dtype).cpu()
