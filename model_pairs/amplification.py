"""Running W_base + w (W_finetuned - W_base), with w by layer and module, for adapters and full finetunes alike.

How: the base side runs, and hooks on its modules add w times what the finetuned side's module gives beyond it. Every
module that owns weights is affine in them, so mixing outputs mixes weights exactly; where both sides are plain LoRA
only the low-rank difference is computed. Hooks live for one call, under the locks of all models that take part, and are
removed in `finally`: no weight, scaling or file is ever written, so a crash or a cancelled call leaves nothing to
restore, and a second copy of the weights is never made. (Adding w times the difference in place would need an exact way
back and a third copy to have one.) A full finetune costs a second product a module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from diffing_mcp.core.errors import InvalidInput, NotTheSame
from diffing_mcp.model_pairs.modules import Unit, units_of

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.resident import ResidentModel
    from diffing_mcp.model_pairs.sides import LoadedSide


@dataclass(frozen=True)
class _Part:
    """What one difference adds to one module: `weight` times (finetuned - origin)."""

    weight: float
    finetuned: Unit
    origin: Unit


@contextmanager
def running(side: LoadedSide) -> Iterator[ResidentModel]:
    """The model that an amplified side runs on, locked and hooked.

    Raises:
        NotTheSame: the models have other modules.
        InvalidInput: a module to amplify that is not affine in its weights.
        OutOfRoom: the models do not fit in memory together.
    """
    with ExitStack() as stack:
        resident = stack.enter_context(side.hold())
        held = [
            [stack.enter_context(each.hold()) for each in (term.finetuned, term.origin)] for term in side.differences
        ]
        # In one order everywhere, so that two calls never wait for each other.
        models = {id(model): model for model in (resident, *(model for several in held for model in several))}
        for key in sorted(models):
            stack.enter_context(models[key].lock)
        units: dict[tuple[int, str | None], dict[str, Unit]] = {}
        for several, term in zip(held, side.differences, strict=True):
            for model, loaded in zip(several, (term.finetuned, term.origin), strict=True):
                if (id(model), loaded.adapter) not in units:
                    units[id(model), loaded.adapter] = units_of(model, loaded.adapter)
        own = units_of(resident, side.adapter)  # last: it switches on what runs
        for name, unit in own.items():
            parts = []
            for several, term in zip(held, side.differences, strict=True):
                finetuned, origin = (
                    units[id(model), each.adapter].get(name)
                    for model, each in zip(several, (term.finetuned, term.origin), strict=True)
                )
                if finetuned is None or origin is None:
                    raise NotTheSame(
                        f"The models have other modules: `{name}` is in one of them only, so their weights cannot be "
                        "mixed."
                    )
                weight = term.weight(unit.place)
                if weight and not finetuned.same(origin) and _mixable(unit, finetuned, origin):
                    parts.append(_Part(weight, finetuned, origin))
            if parts:
                handle = unit.outer.register_forward_hook(_Hook(unit, parts), with_kwargs=True, prepend=True)
                stack.callback(handle.remove)
        yield resident


class _Hook:
    """Replaces a module's output by the mixed one."""

    def __init__(self, unit: Unit, parts: Sequence[_Part]) -> None:
        self._unit, self._parts = unit, parts
        self._busy = False
        # The finetuned model itself: its own module runs, so that the result is the same to the last bit.
        self._as_it_is = len(parts) == 1 and parts[0].weight == 1 and parts[0].origin.same(unit)

    def __call__(
        self, module: Any, arguments: tuple[Any, ...], named: dict[str, Any], output: torch.Tensor
    ) -> torch.Tensor | None:
        if self._busy:  # a LoRA layer of another side calls this base layer
            return None
        self._busy = True
        try:
            if self._as_it_is:
                return _common(self._parts[0].finetuned.output(*arguments, **named), output)
            for part in self._parts:
                output = self._added(part, arguments, named, output)
            return output
        finally:
            self._busy = False

    def _added(
        self, part: _Part, arguments: tuple[Any, ...], named: dict[str, Any], output: torch.Tensor
    ) -> torch.Tensor:
        loras = [None if unit.plain else unit.lora() for unit in (part.finetuned, part.origin)]
        low_rank = all(
            unit.plain or lora is not None for unit, lora in zip((part.finetuned, part.origin), loras, strict=True)
        )
        if low_rank and part.finetuned.bare is part.origin.bare:
            for lora, sign in zip(loras, (1.0, -1.0), strict=True):
                if lora is not None:
                    output = _plus_lora(output, arguments[0], lora, sign * part.weight)
            return output
        finetuned = part.finetuned.output(*arguments, **named).float()
        origin = (
            self._unit.output(*arguments, **named)
            if part.origin.same(self._unit)
            else part.origin.output(*arguments, **named)
        )
        return (output.float() + part.weight * _common(finetuned - _common(origin.float(), finetuned), output)).to(
            output.dtype
        )


def _plus_lora(
    output: torch.Tensor,
    x: torch.Tensor,
    lora: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, float],
    weight: float,
) -> torch.Tensor:
    """output + weight * scaling * (x A^T B^T + bias)."""
    first, second, bias, scaling = lora
    low = torch.nn.functional.linear(x.to(first.dtype), first)
    flat = torch.addmm(
        output.reshape(-1, output.shape[-1]), low.reshape(-1, low.shape[-1]), second.t(), alpha=weight * scaling
    )
    if bias is not None:
        flat = flat + weight * scaling * bias
    return flat.view(output.shape)


def _common(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """On the device of `like` and as wide: the sides' unembeddings may have unequal numbers of rows; what one lacks
    does not change.
    """
    values = values.to(like.device)
    if values.shape[-1] > like.shape[-1]:
        return values[..., : like.shape[-1]]
    return (
        torch.nn.functional.pad(values, (0, like.shape[-1] - values.shape[-1]))
        if values.shape[-1] < like.shape[-1]
        else values
    )


def _mixable(unit: Unit, finetuned: Unit, origin: Unit) -> bool:
    """Whether mixing this module's outputs mixes its weights; False when there is nothing to mix."""
    from transformers.pytorch_utils import Conv1D

    known = (
        isinstance(unit.bare, torch.nn.Linear | torch.nn.Embedding | torch.nn.Conv1d | Conv1D)
        or "norm" in type(unit.bare).__name__.lower()
    )
    if known and not any(True for _ in unit.bare.children()):
        return True
    values = finetuned.values(), origin.values()
    if all(torch.equal(values[0][name], values[1][name].to(values[0][name].device)) for name in values[0]):
        return False
    raise InvalidInput(
        f"`{unit.place.name}` is a {type(unit.bare).__name__}, whose output is not affine in its weights, so it cannot "
        "be amplified. Choose other modules: give it the weight 0."
    )
