"""The one rule for naming layers: a relative depth r in [0, 1] is layer `round(r * (num_layers - 1))`.
No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from diffing_mcp.core.errors import InvalidInput


def _plain_number(value: Any) -> Any:
    """A number of numpy or torch as one of Python; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


Layer = Annotated[int | float, BeforeValidator(_plain_number)]
"""A layer as parameters take it. What numpy calls 1 stays the whole number 1: read as the float 1.0 it would be the
last layer."""


class LayerRef(BaseModel):
    """A layer in both forms. Layer l means the residual stream after block l (0-based)."""

    model_config = ConfigDict(frozen=True)

    absolute: int
    relative: float


def resolve_layer(layer: int | float, num_layers: int) -> LayerRef:
    """One layer in both forms; integers are absolute, floats relative. Raises InvalidInput outside of [0, num_layers -
    1] or [0, 1].
    """
    if isinstance(layer, bool) or not isinstance(layer, int | float):
        raise InvalidInput(
            f"A layer is an integer in [0, {num_layers - 1}] or a relative depth (a float in [0, 1]), not {layer!r}."
        )
    if isinstance(layer, int):
        if not 0 <= layer < num_layers:
            raise InvalidInput(
                f"Layer {layer} is out of range: this model has layers 0 to {num_layers - 1}. "
                "Integers are absolute layers; relative depths are floats in [0, 1], such as 0.5."
            )
        absolute = layer
    else:
        if not math.isfinite(layer) or not 0 <= layer <= 1:
            raise InvalidInput(
                f"The relative depth {layer} is out of range: floats lie in [0, 1]. Absolute layers are integers in "
                f"[0, {num_layers - 1}]."
            )
        absolute = round(layer * (num_layers - 1))
    return LayerRef(absolute=absolute, relative=round(absolute / (num_layers - 1), 4) if num_layers > 1 else 0.0)


def resolve_layers(layers: Sequence[int | float], num_layers: int) -> list[LayerRef]:
    """All layers in both forms, in the order given, each layer once. Raises InvalidInput."""
    references: dict[int, LayerRef] = {}
    for layer in layers:
        reference = resolve_layer(layer, num_layers)
        references.setdefault(reference.absolute, reference)
    return list(references.values())
