"""Numbers that are not finite end as an error that names the side and the weights, never as a result.

Logits are checked by a hook that every resident model has, so that whatever runs a model is covered; hidden states
where they are taken. A reduction over the vocabulary costs about a hundredth of a pass of a small model, less of larger
ones. Token ids that a model switches off on purpose (a logit of -inf) are the lowest finite number from there on: their
probability is 0 either way, and differences of two sides stay numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from diffing_mcp.core.errors import NotFinite

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.sides import LoadedSide
    from diffing_mcp.model_pairs.specs import Side


def is_finite(values: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    return values.numel() == 0 or bool(torch.isfinite(torch.stack([values.amax(), values.amin()])).all())


def check_values(values: torch.Tensor, where: str) -> None:
    """Raise NotFinite when a value is NaN or infinite."""
    if not is_finite(values):
        raise NotFinite(f"{_kind(values)} in {where}")


def check_hidden(hidden: Mapping[int, torch.Tensor], mask: torch.Tensor) -> None:
    """Raise NotFinite for the first layer whose states [B, S, d_model] are not finite where the mask [B, S] is 1."""
    for layer in sorted(hidden):
        rows = torch.stack([hidden[layer].amax(-1), hidden[layer].amin(-1)], -1)
        if not is_finite(rows[mask.to(rows.device).bool()]):
            raise NotFinite(f"{_kind(rows)} in the residual stream after layer {layer}")


def check_logits(logits: torch.Tensor, mask: torch.Tensor | None = None) -> None:
    """Raise NotFinite when logits [..., V] are NaN or +inf, or -inf in a whole row, where the mask [...] is 1; other
    -inf become the lowest number.
    """
    highest = logits.detach().amax(-1)
    if mask is not None:
        highest = highest[mask.to(highest.device).bool()]
    if not is_finite(highest):
        raise NotFinite(f"{_kind(highest)} in the logits")
    # What a model switches off is off in every row, so the last one tells.
    if not logits.requires_grad and not is_finite(logits[(-1,) * (logits.ndim - 1)]):
        logits.clamp_(min=torch.finfo(logits.dtype).min)


def check_output(_module: Any, _arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
    """Forward hook of a transformer: `check_logits` at the positions that are text; of a generation step at the last
    position, which always is.
    """
    logits = output.logits
    mask = mask_of(named, logits.shape[1])
    if mask is None:
        check_logits(logits[:, -1:])
    else:
        check_logits(logits, mask)


def mask_of(named: Mapping[str, Any], length: int) -> torch.Tensor | None:
    """The attention mask [B, length] of the last positions among the arguments of a pass; None: they have none of two
    axes.
    """
    mask = named.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.ndim == 2 and mask.shape[1] >= length:
        return mask[:, mask.shape[1] - length :]
    return None


def explained(found: str, running: Mapping[Side, LoadedSide]) -> str:
    """What was found, on which of the running sides, with the weights that cause it or what else may."""
    from diffing_mcp.model_pairs.switching import activate

    broken: dict[Side, tuple[int, str]] = {}
    dtypes: set[torch.dtype] = set()
    for side, loaded in running.items():
        names: list[str] = []
        for each in (loaded, *(term.finetuned for term in loaded.differences)):
            with each.hold() as resident, resident.lock:
                activate(resident, each.adapter)
                dtypes.add(resident.dtype)
                unused = [name for name in resident.adapters if name != each.adapter]
                names += [
                    _saved_name(name).replace(f".{each.adapter}", "")
                    for name, parameter in resident.transformer.named_parameters()
                    if not any(f".{adapter}" in name for adapter in unused)
                    and parameter.is_floating_point()
                    and not is_finite(parameter.detach())
                ]
        if names:
            broken[side] = len(names), names[0]
    who = " and ".join(f"the {side} side" for side in (broken or running))
    message = f"{who[0].upper()}{who[1:]} {'give' if ' and ' in who else 'gives'} {found}."
    if broken:
        count, name = next(iter(broken.values()))
        return (
            f"{message} `{name}` holds NaN or infinite numbers ({count} of its weights do): the checkpoint is "
            "damaged. Download or save it again."
        )
    if dtypes - {torch.float32}:
        return f"{message} The weights are finite, so the numbers overflow {_names(dtypes)}: set DIFFING_DTYPE=float32."
    return (
        f"{message} The weights are finite, but too large for float32, or changed by too much: check the checkpoint, "
        "or lower the strength or weight."
    )


def _saved_name(name: str) -> str:
    """A parameter's name as files have it: a LoRA layer that is switched on holds its matrices by other names."""
    for inside, saved in ((".first", ".lora_A.weight"), (".second", ".lora_B.weight")):
        if name.endswith(inside):
            return name.removesuffix(inside) + saved
    return name.replace(".base_layer", "")


def _names(dtypes: set[torch.dtype]) -> str:
    return " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


def _kind(values: torch.Tensor) -> str:
    return "NaN" if bool(values.isnan().any()) else "infinite numbers"
