"""Amplification configurations: how strongly each adapter's weight difference counts, by layer and module. YAML, read
strictly. Torch-free.

    name: loud mlp
    adapters:
      - organism_name: null          # the pair's own finetune; or a catalogue organism, or `custom` with `variant: HUB_ID_OR_FOLDER`
        layer_amplifications:
          - layers: {type: range, start: 0, end: 0.8}
            is_relative: true
            module_amplifications:
              - {modules: mlp, weight: 2.5}
              - {modules: down_proj, weight: -1}

Every module starts at weight 1 (the finetune as it is); later entries override earlier ones for the modules that they
name, and for no others.
"""  # noqa: E501

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.model_pairs.files import hub_place, is_local
from diffing_mcp.model_pairs.layers import resolve_layer
from diffing_mcp.model_pairs.modules import ModulePlace
from diffing_mcp.model_pairs.resolve import resolve_pair
from diffing_mcp.model_pairs.specs import AdapterFiles

WeightOf = Callable[[ModulePlace], float]
LayerChoice = tuple[int | float, ...] | Literal["all"]

_MAX_BYTES = 1 << 20
_LAYERS_HELP = "layers are `all`, a layer, a list of layers, or {type: range, start: FIRST, end: LAST} (both included)"
_HUB_HELP = "a hub id (`account/repository[//sub/folder][@revision]`) or a local folder"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LayerRange(_Strict):
    """Layers from `start` to `end`, both included."""

    type: Literal["range"] = "range"
    start: int | float = Field(allow_inf_nan=False)
    end: int | float = Field(allow_inf_nan=False)


class ModuleAmplification(_Strict):
    """One weight for some modules."""

    modules: str | tuple[str, ...] = Field(
        "all", description="`all`, `attention`, `mlp`, or names such as `down_proj` or `mlp.down_proj`."
    )
    weight: float = Field(
        ge=-1000, le=1000, description="0: as in the base; 1: as in the finetune; negative: away from it."
    )

    def names(self, place: ModulePlace) -> bool:
        """Whether it means the module at a place."""
        return any(place.named(name) for name in ((self.modules,) if isinstance(self.modules, str) else self.modules))


class LayerAmplification(_Strict):
    """Weights for some layers."""

    layers: Any = Field("all", description=_LAYERS_HELP)
    is_relative: bool = Field(False, description="Layers are fractions of the depth in [0, 1] instead of numbers.")
    module_amplifications: tuple[ModuleAmplification, ...] = Field(min_length=1)

    @field_validator("layers")
    @classmethod
    def _layers(cls, value: Any) -> Any:
        if isinstance(value, dict):
            try:
                return LayerRange.model_validate(value)
            except ValidationError as error:
                raise ValueError(_LAYERS_HELP) from error
        several = value if isinstance(value, list | tuple) else [value]
        numbers = all(
            isinstance(each, int | float) and not isinstance(each, bool) and math.isfinite(each) for each in several
        )
        if value != "all" and not isinstance(value, LayerRange) and not (several and numbers):
            raise ValueError(_LAYERS_HELP)
        return tuple(value) if isinstance(value, list) else value

    def chosen(self, num_layers: int) -> frozenset[int] | None:
        """Absolute layers; None for `all`, which includes what lies outside of the blocks.

        Raises:
            InvalidInput: a layer out of range, or a fraction where numbers are meant.
        """
        if self.layers == "all":
            return None
        if isinstance(self.layers, LayerRange):
            first, last = (self._absolute(each, num_layers) for each in (self.layers.start, self.layers.end))
            if first > last:
                raise InvalidInput(f"layers: the range starts at layer {first}, after its end {last}.")
            return frozenset(range(first, last + 1))
        several = self.layers if isinstance(self.layers, tuple) else (self.layers,)
        return frozenset(self._absolute(each, num_layers) for each in several)

    def _absolute(self, value: int | float, num_layers: int) -> int:
        if self.is_relative:
            return resolve_layer(float(value), num_layers).absolute
        if value != int(value):
            raise InvalidInput(
                f"layers: {value} is no layer; with `is_relative: true` it would be a fraction of the depth."
            )
        return resolve_layer(int(value), num_layers).absolute


class AdapterAmplification(_Strict):
    """One finetune, and how strongly its difference to the base counts where."""

    organism_name: str | None = Field(
        None, description="None: the pair's own finetune; a catalogue organism; or `custom`."
    )
    variant: str | None = Field(None, description=f"Of the organism; with `custom` {_HUB_HELP}.")
    layer_amplifications: tuple[LayerAmplification, ...] = ()

    @property
    def own(self) -> bool:
        """Whether the pair's own finetune is meant."""
        return self.organism_name is None

    def weight_of(self, num_layers: int) -> WeightOf:
        """The weight of every place: 1 where nothing names it, else what the last entry that names it says.

        Raises:
            InvalidInput: a layer out of range.
        """
        rules = [
            (entry.chosen(num_layers), rule)
            for entry in self.layer_amplifications
            for rule in entry.module_amplifications
        ]

        def weight(place: ModulePlace) -> float:
            found = 1.0
            for layers, rule in rules:
                if (layers is None or place.layer in layers) and rule.names(place):
                    found = rule.weight
            return found

        return weight


class AmplificationConfig(_Strict):
    """One amplified model."""

    name: Annotated[str, Field(min_length=1, max_length=100)] = "amplified"
    description: str = ""
    adapters: tuple[AdapterAmplification, ...] = Field(min_length=1, max_length=16)

    @property
    def named_modules(self) -> frozenset[str]:
        """What the rules call modules by, but for `all`."""
        rules = [
            rule
            for adapter in self.adapters
            for entry in adapter.layer_amplifications
            for rule in entry.module_amplifications
        ]
        return frozenset(
            name for rule in rules for name in ((rule.modules,) if isinstance(rule.modules, str) else rule.modules)
        ) - {"all"}

    def check_modules(self, places: Sequence[ModulePlace]) -> None:
        """Whether every name of modules means some of a model, whose places these are (`LoadedPair.module_places`).

        Raises:
            InvalidInput: one means none; the message lists what there is.
        """
        if unknown := sorted(name for name in self.named_modules if not any(place.named(name) for place in places)):
            known = dict.fromkeys([*(place.part for place in places), *(place.projection for place in places)])
            raise InvalidInput(
                f"The model has no modules {', '.join(unknown)}; modules: all, "
                f"{', '.join(name for name in known if name != 'other')}."
            )


def load_amplification_config(source: Path | str) -> AmplificationConfig:
    """A configuration from a YAML file (a `Path`) or from YAML text (a `str`).

    Raises:
        InvalidInput: unreadable, no YAML, or keys and values that are not allowed, each named by its path with what is.
    """
    try:
        text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"The amplification config cannot be read ({type(error).__name__}); it is a YAML file."
        ) from error
    if len(text) > _MAX_BYTES:
        raise InvalidInput(f"An amplification config has at most {_MAX_BYTES} characters.")
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:  # thousands of open brackets
        raise InvalidInput(f"The amplification config is no YAML: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(values, dict):
        raise InvalidInput(
            f"An amplification config is a mapping with the keys {', '.join(AmplificationConfig.model_fields)}."
        )
    try:
        return AmplificationConfig.model_validate(values)
    except ValidationError as error:
        raise InvalidInput(
            "The amplification config is not valid. " + " ".join(_explained(each) for each in error.errors()[:8])
        ) from error


_MODELS: dict[str, type[BaseModel]] = {
    "adapters": AdapterAmplification,
    "layer_amplifications": LayerAmplification,
    "module_amplifications": ModuleAmplification,
}


def _explained(error: Any) -> str:
    """`adapters.0.variant: what is wrong; what is allowed.`"""
    path = [str(piece) for piece in error["loc"]]
    owner = next((_MODELS[piece] for piece in reversed(path[:-1]) if piece in _MODELS), AmplificationConfig)
    if error["type"] == "extra_forbidden":
        return f"`{'.'.join(path)}` is no known key; allowed here: {', '.join(owner.model_fields)}."
    if error["type"] == "missing":
        return f"`{'.'.join(path)}` is missing; keys here: {', '.join(owner.model_fields)}."
    field = owner.model_fields.get(next((piece for piece in reversed(path) if piece in owner.model_fields), ""))
    allowed = (
        f" ({field.description})"
        if field is not None and field.description and field.description not in error["msg"]
        else ""
    )
    return f"`{'.'.join(path)}`: {error['msg'].removeprefix('Value error, ')}{allowed}."


def adapter_files(entry: AdapterAmplification, model: str | None = None) -> AdapterFiles:
    """The adapter that an entry names, of an organism on a catalogue model (None: the organism's first).

    Raises:
        UnknownName: no such organism, variant or model.
        InvalidInput: `custom` without a variant, or an organism that is no adapter.
    """
    if entry.organism_name == "custom":
        if not entry.variant:
            raise InvalidInput(f"`organism_name: custom` needs `variant`: {_HUB_HELP}.")
        if is_local(entry.variant):
            return AdapterFiles(id=entry.variant)
        repository, revision, subfolder = hub_place(entry.variant)
        return AdapterFiles(id=repository, revision=revision, subfolder=subfolder)
    text = str(entry.organism_name) + (f"/{entry.variant}" if entry.variant else "") + (f"@{model}" if model else "")
    adapter = resolve_pair(text).finetuned.adapter
    if adapter is None:
        raise InvalidInput(
            f"`organism_name: {entry.organism_name}` is no adapter, so it cannot be mixed into another model."
        )
    return adapter
