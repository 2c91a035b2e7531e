"""The difference of the two sides' weights, module by module: as LoRA factors where both sides are adapters of one
base, else dense.

Nothing is ever held of both models but one weight at a time, and a product of LoRA factors is never formed.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from diffing_mcp.core.errors import InvalidInput, NotTheSame, OutOfRoom
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.model_pairs.checkpoint import UNQUANTISED
from diffing_mcp.model_pairs.finite import check_values, is_finite
from diffing_mcp.model_pairs.modules import LowRank, ModulePlace, Unit, oriented, output_gain, units_of
from diffing_mcp.model_pairs.stored_buffers import StoredBuffer, buffers_of

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.resident import ResidentModel
    from diffing_mcp.model_pairs.sides import LoadedSide


@dataclass(frozen=True)
class WeightDelta:
    """Finetuned minus base of one parameter.

    Attributes:
        place: the module.
        parameter: `weight`, `bias`, or another name, also that of a stored buffer.
        shape: of the parameter; matrices as [out, in] (`diffing_mcp.model_pairs.modules.oriented`).
        base_norm: Frobenius norm of the base side's.
        delta: None when it is exactly zero (unequal numbers of vocabulary rows: on the common ones); LoRA factors, or
            float32 values of `shape`, on the CPU.
        gain: what the finetuned model multiplies the outputs by before they are added to the residual stream
            (`diffing_mcp.model_pairs.modules.output_gain`); None: nothing, or the difference is zero.
    """

    place: ModulePlace
    parameter: str
    shape: tuple[int, ...]
    base_norm: float
    delta: LowRank | torch.Tensor | None
    gain: torch.Tensor | None = None


Chosen = Callable[[ModulePlace], bool]


def everything(place: ModulePlace) -> bool:
    """Every module."""
    return True


def weight_deltas(
    base: LoadedSide, finetuned: LoadedSide, in_turn: bool, progress: Progress = silent, chosen: Chosen = everything
) -> Iterator[WeightDelta]:
    """Every parameter of the chosen modules, one after the other, weights that modules share once, then the stored
    buffers that differ. Locks are held while one is read, not between.

    `in_turn`: the two models do not fit in memory together; the base is written to a scratch folder once, and read from
    there.

    Raises:
        NotTheSame: the two models have other modules.
        InvalidInput: quantised weights.
        OutOfRoom: no room for the scratch folder.
        NotFinite: weights that are NaN or infinite on one side.
    """
    if in_turn:
        yield from _in_turn(base, finetuned, progress, chosen)
        return
    with ExitStack() as stack:
        residents = [_with_plain_weights(stack.enter_context(side.hold())) for side in (base, finetuned)]
        shared = residents[0] is residents[1]
        units = []
        for resident, side in zip(residents, (base, finetuned), strict=True):
            with resident.lock:
                units.append(units_of(resident, side.adapter))
        _check_names(_names(units[0]), _names(units[1]))
        seen: set[tuple[int, int]] = set()
        for done, (name, unit) in enumerate(units[0].items()):
            progress(done, len(units[0]), "comparing weights")
            if not chosen(unit.place):
                continue
            other = units[1][name]
            for parameter, value in unit.bare.named_parameters(recurse=False):
                key = (value.data_ptr(), dict(other.bare.named_parameters(recurse=False))[parameter].data_ptr())
                if key in seen and unit.plain and other.plain:
                    continue
                seen.add(key)
                with residents[0].lock, residents[1].lock if not shared else residents[0].lock:
                    result = _with_gain(_compare(unit, other, parameter, shared), units[1])
                yield result
            with residents[0].lock, residents[1].lock if not shared else residents[0].lock:
                bias = _added_bias(unit, other)
            if bias is not None:
                yield bias
        with residents[0].lock, residents[1].lock if not shared else residents[0].lock:
            before, after = buffers_of(residents[0], base.adapter), buffers_of(residents[1], finetuned.adapter)
            moved = _moved_buffers(before, after, chosen)
        yield from moved


def _moved_buffers(
    base: Mapping[str, StoredBuffer], finetuned: Mapping[str, StoredBuffer], chosen: Chosen
) -> list[WeightDelta]:
    """The differences of stored buffers, those that are equal left out: a buffer is no weight unless it moved."""
    both = [(before, finetuned[name]) for name, before in base.items() if name in finetuned and chosen(before.place)]
    return [
        _dense(before.place, before.name, before.values, after.values)
        for before, after in both
        if not before.equals(after)
    ]


def _with_plain_weights(resident: ResidentModel) -> ResidentModel:
    """The model, whose parameters are its weights; those of a quantised one are codes, or are no parameters at all."""
    if getattr(resident.transformer, "is_quantized", False):
        raise InvalidInput(
            "The weights of a model of this pair are quantised, so their sizes and differences mean nothing; "
            f"{UNQUANTISED}. Methods that read texts or activations take it as it is."
        )
    return resident


def _added_bias(base: Unit, finetuned: Unit) -> WeightDelta | None:
    """The difference of biases that LoRA adapters put where the model itself has none; None where they put none."""
    if "bias" in dict(base.bare.named_parameters(recurse=False)):
        return None
    given = [None if unit.plain or (lora := unit.lora()) is None else lora[2] for unit in (base, finetuned)]
    like = next((bias for bias in given if bias is not None), None)
    if like is None:
        return None
    before, after = (unit.values().get("bias", torch.zeros_like(like)) for unit in (base, finetuned))
    return _dense(base.place, "bias", before, after)


def _with_gain(found: WeightDelta, units: dict[str, Unit]) -> WeightDelta:
    """The difference, with the gain behind a matrix that is not equal. `units`: of the finetuned side, whose lock the
    caller holds.
    """
    if found.delta is None or len(found.shape) != 2:
        return found
    return replace(found, gain=output_gain(units, found.place))


def _compare(base: Unit, finetuned: Unit, parameter: str, shared: bool) -> WeightDelta:
    """One parameter of the two sides."""
    if shared and base.same(finetuned):
        value = oriented(base.bare, base.values()[parameter])
        return WeightDelta(base.place, parameter, tuple(value.shape), _norm(value), None)
    if parameter == "weight" and _same_bare(base, finetuned):
        factors = [None if unit.plain else unit.low_rank() for unit in (base, finetuned)]
        if all(unit.plain or low is not None for unit, low in zip((base, finetuned), factors, strict=True)):
            weight = oriented(base.bare, base.bare.weight.detach())
            return WeightDelta(
                base.place, parameter, tuple(weight.shape), _norm_with(weight, factors[0]), _difference(*factors)
            )
    before, after = (oriented(unit.bare, unit.values()[parameter]) for unit in (base, finetuned))
    return _dense(base.place, parameter, before, after)


def _same_bare(base: Unit, finetuned: Unit) -> bool:
    """Whether both sides change the same weight: then factors say the difference exactly, whichever copy of the base
    each hangs on.
    """
    one, other = base.bare.weight, finetuned.bare.weight
    return one is other or (
        not (base.plain and finetuned.plain) and one.shape == other.shape and torch.equal(one, other.to(one.device))
    )


def _difference(base: LowRank | None, finetuned: LowRank | None) -> LowRank | None:
    """Finetuned minus base as one product: factors side by side, those of the base with a minus."""
    for low in (finetuned, base):
        if low is not None:
            check_values(low.left, "a LoRA matrix")
            check_values(low.right, "a LoRA matrix")
    parts = [
        (low, sign)
        for low, sign in ((finetuned, 1.0), (base, -1.0))
        if low is not None and bool(low.left.any()) and bool(low.right.any())
    ]
    if not parts:
        return None
    return LowRank(
        torch.cat([sign * low.left for low, sign in parts], dim=1), torch.cat([low.right for low, _ in parts])
    )


def _dense(place: ModulePlace, parameter: str, before: torch.Tensor, after: torch.Tensor) -> WeightDelta:
    """Float32 difference on the common rows (a finetune may have added tokens)."""
    if before.shape != after.shape:
        common = [min(sizes) for sizes in zip(before.shape, after.shape, strict=True)]
        if place.part not in ("embedding", "unembedding") or before.ndim != after.ndim:
            raise NotTheSame(
                f"`{place.name}.{parameter}` is {tuple(before.shape)} in the base model and {tuple(after.shape)} in "
                "the finetuned one."
            )
        for axis, size in enumerate(common):
            before, after = before.narrow(axis, 0, size), after.narrow(axis, 0, size)
    before, after = before.cpu().float(), after.cpu().float()
    delta = after - before
    if not is_finite(delta):  # rows that nothing reads may hold anything, as long as it is the same on both sides
        delta = torch.where((before == after) | (before.isnan() & after.isnan()), 0.0, delta)
        check_values(delta, f"`{place.name}.{parameter}`")
    return WeightDelta(place, parameter, tuple(before.shape), _norm(before), delta if bool(delta.any()) else None)


def _norm(values: torch.Tensor) -> float:
    norm = float(torch.linalg.vector_norm(values.float(), dtype=torch.float64))
    # Values that both sides have and nothing reads may be infinite; the norm is that of the others.
    return (
        norm
        if math.isfinite(norm)
        else float(torch.linalg.vector_norm(values.float().nan_to_num(0.0, 0.0, 0.0), dtype=torch.float64))
    )


def _norm_with(weight: torch.Tensor, low: LowRank | None) -> float:
    """Frobenius norm of weight + left @ right, from |W|^2 + 2 <W, LR> + |LR|^2."""
    if low is None:
        return _norm(weight)
    cross = float(((low.left.T @ weight.detach().cpu().double()) * low.right).sum())
    square = float(((low.left.T @ low.left) * (low.right @ low.right.T)).sum())
    return float(max(0.0, _norm(weight) ** 2 + 2 * cross + square) ** 0.5)


def _names(units: dict[str, Unit]) -> set[str]:
    return {
        f"{name}.{parameter}"
        for name, unit in units.items()
        for parameter, _ in unit.bare.named_parameters(recurse=False)
    }


def _check_names(base: set[str], finetuned: set[str]) -> None:
    if base != finetuned:
        name = sorted(base ^ finetuned)[0]
        raise NotTheSame(
            f"The models have other weights: `{name}` is in one of them only. Name a finetune of this base model."
        )


def _in_turn(base: LoadedSide, finetuned: LoadedSide, progress: Progress, chosen: Chosen) -> Iterator[WeightDelta]:
    """The weight differences of two models of which only one is in memory at a time."""
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory(prefix="base-weights-") as scratch:
        written: dict[tuple[str, str], Path] = {}
        aliases: set[tuple[str, str]] = set()
        try:
            with base.hold() as resident, resident.lock:
                seen: set[int] = set()
                units = units_of(_with_plain_weights(resident), base.adapter)
                names = _names(units)
                stored = {
                    name: replace(each, values=each.values.cpu().clone())
                    for name, each in buffers_of(resident, base.adapter).items()
                }
                for name, unit in units.items():
                    if not chosen(unit.place):
                        continue
                    progress(0, None, "writing the base's weights to disk")
                    for parameter, value in unit.values().items():
                        if unit.plain and value.data_ptr() in seen:
                            aliases.add((name, parameter))
                        seen.add(value.data_ptr())
                        path = Path(scratch) / f"{len(written)}.safetensors"
                        save_file({"value": value.cpu().contiguous()}, path)
                        written[name, parameter] = path
        except OSError as error:
            raise OutOfRoom(
                "The two models do not fit in memory together, and the temporary folder has no room for the base's "
                "weights."
            ) from error
        with finetuned.hold() as resident:
            with resident.lock:
                units = units_of(_with_plain_weights(resident), finetuned.adapter)
            _check_names(names, _names(units))
            shared: set[int] = set()
            for done, ((name, parameter), path) in enumerate(written.items()):
                progress(done, len(written), "comparing weights")
                unit = units[name]
                own = dict(unit.bare.named_parameters(recurse=False))[parameter].data_ptr()
                if (name, parameter) in aliases and unit.plain and own in shared:
                    continue
                shared.add(own)
                before = load_file(path)["value"]
                with resident.lock:
                    after = unit.values()[parameter]
                    result = _dense(unit.place, parameter, oriented(unit.bare, before), oriented(unit.bare, after))
                    result = _with_gain(result, units)
                yield result
            with resident.lock:
                moved = _moved_buffers(stored, buffers_of(resident, finetuned.adapter), chosen)
            yield from moved
