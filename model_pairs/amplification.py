"""Running W_base + w (W_finetuned - W_base), with w by layer and module, for adapters and full finetunes alike.

How: the base side runs, and hooks on its modules add w times what the finetuned side's module gives beyond it. Every
module that owns weights is affine in them, so mixing outputs mixes weights exactly; where both sides are plain LoRA
only the low-rank difference is computed. Hooks live for one pass, under the locks of all models that take part, and are
removed in `finally`: no weight, scaling or file is ever written, so a crash or a cancelled call leaves nothing to
restore, and a second copy of the weights is never made. (Adding w times the difference in place would need an exact way
back and a third copy to have one.) A full finetune costs a second product a module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from diffing_mcp.core.errors import InvalidInput, NotTheSame
from diffing_mcp.model_pairs.modules import Unit, steering_place, units_of
from diffing_mcp.model_pairs.sides import Difference, LoadedSide, SideInMemory
from diffing_mcp.model_pairs.stored_buffers import buffers_of
from diffing_mcp.model_pairs.switching import activate, switched_on

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.amplification_config import WeightOf
    from diffing_mcp.model_pairs.interventions import Intervention
    from diffing_mcp.model_pairs.lora_slots import Slot
    from diffing_mcp.model_pairs.resident import ResidentModel


@dataclass(frozen=True)
class _Part:
    """What one difference adds to one module: `weight` times (finetuned - origin)."""

    weight: float
    finetuned: Unit
    origin: Unit


def mixed_side(
    base: LoadedSide, finetuned: LoadedSide, weight_of: WeightOf, others: Sequence[Difference] = ()
) -> LoadedSide:
    """The base side with the difference between the two, and `others`, counted as often as their weights say."""

    def scaled(interventions: Sequence[Intervention], sign: float) -> list[Intervention]:
        shares = [weight_of(steering_place(each)) for each in interventions]
        kept = [sign * share + (sign < 0) for share in shares]  # the base's own counts 1 - w
        return [
            replace(each, strength=each.strength * share)
            for each, share in zip(interventions, kept, strict=True)
            if share
        ]

    steering = (*scaled(base.steering, -1.0), *scaled(finetuned.steering, 1.0))
    differences = (Difference(finetuned, base, weight_of), *others)
    return LoadedSide(base.hold, base.adapter, steering, differences, base.in_memory)


@contextmanager
def side_in_memory(side: LoadedSide) -> Iterator[SideInMemory]:
    """A side with its model, amplified or not, kept in memory inside the context. Raises as `amplified_side`."""
    if side.differences:
        with amplified_side(side) as amplified:
            yield amplified
        return
    with side.hold() as resident:
        yield SideInMemory(resident, side.steering, partial(switched_on, resident, side.adapter))


@contextmanager
def amplified_side(side: LoadedSide) -> Iterator[SideInMemory]:
    """The model that an amplified side runs on, with the others that take part kept in memory beside it.

    Raises (when it is switched on):
        NotTheSame: the models have other modules.
        InvalidInput: a module to amplify that is not affine in its weights.
        OutOfRoom: the models do not fit in memory together.
    """
    with ExitStack() as stack:
        resident = stack.enter_context(side.hold())
        terms = [
            _Term(
                stack.enter_context(each.finetuned.hold()),
                each.finetuned.adapter,
                stack.enter_context(each.origin.hold()),
                each.origin.adapter,
                each.weight,
            )
            for each in side.differences
        ]
        yield SideInMemory(resident, side.steering, _Mixture(resident, side.adapter, terms).switched_on)


@dataclass(frozen=True)
class _Term:
    """A weight difference between two models in memory."""

    finetuned: ResidentModel
    finetuned_adapter: str | None
    origin: ResidentModel
    origin_adapter: str | None
    weight: WeightOf

    @property
    def sides(self) -> tuple[tuple[ResidentModel, str | None], tuple[ResidentModel, str | None]]:
        """Model and adapter of both."""
        return (self.finetuned, self.finetuned_adapter), (self.origin, self.origin_adapter)


class _Mixture:
    """One model with the weight differences that are added to it."""

    def __init__(self, resident: ResidentModel, adapter: str | None, terms: Sequence[_Term]) -> None:
        self._resident, self._adapter, self._terms = resident, adapter, terms
        models = [resident, *(model for term in terms for model, _ in term.sides)]
        # In one order everywhere, so that two calls never wait for each other.
        self._models = sorted({id(model): model for model in models}.values(), key=id)
        self._hooks: list[tuple[Any, _Hook]] = []
        self._found_in: list[list[Slot]] | None = None

    @contextmanager
    def switched_on(self) -> Iterator[None]:
        """All models locked, hooked and switched."""
        with ExitStack() as stack:
            for model in self._models:
                stack.enter_context(model.lock)
            slots = [model.slots for model in self._models]
            # Attaching another adapter meanwhile puts other modules into a model.
            if self._found_in is None or any(a is not b for a, b in zip(slots, self._found_in, strict=True)):
                self._hooks, self._found_in = self._found(), slots
            for model, adapter in (side for term in self._terms for side in term.sides):
                activate(model, adapter)
            activate(self._resident, self._adapter)  # last: this is what runs
            for outer, hook in self._hooks:
                stack.callback(outer.register_forward_hook(hook, with_kwargs=True, prepend=True).remove)
            yield

    def _found(self) -> list[tuple[Any, _Hook]]:
        """The modules to hook."""
        units: dict[tuple[int, str | None], dict[str, Unit]] = {}
        for model, adapter in (side for term in self._terms for side in term.sides):
            if (id(model), adapter) not in units:
                units[id(model), adapter] = units_of(model, adapter)
        hooks = []
        for name, unit in units_of(self._resident, self._adapter).items():
            parts = []
            for term in self._terms:
                finetuned, origin = (units[id(model), adapter].get(name) for model, adapter in term.sides)
                if finetuned is None or origin is None:
                    raise NotTheSame(
                        f"The models have other modules: `{name}` is in one of them only, so their weights cannot be "
                        "mixed."
                    )
                weight = term.weight(unit.place)
                if weight and not finetuned.same(origin) and _mixable(unit, finetuned, origin):
                    parts.append(_Part(weight, finetuned, origin))
            if parts:
                hooks.append((unit.outer, _Hook(unit, parts)))
        for term in self._terms:
            _check_buffers(term)
        return hooks


def _check_buffers(term: _Term) -> None:
    """Raise InvalidInput where the models differ in a stored buffer that would have to be mixed: what reads it is often
    not affine in it (a router chooses experts by it). The caller holds the locks.
    """
    finetuned, origin = (buffers_of(model, adapter) for model, adapter in term.sides)
    for name, buffer in finetuned.items():
        if name in origin and not buffer.equals(origin[name]) and term.weight(buffer.place):
            raise InvalidInput(
                f"The models differ in `{name}`, a buffer and no weight, so it cannot be amplified. Choose other "
                "modules: give this one the weight 0."
            )


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
