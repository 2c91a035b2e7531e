"""Reads the catalogue of base models and organisms: the bundled YAML files, then the folders of
`settings().catalogue_folders`.

A catalogue folder holds any number of `*.yaml` files, each with the top-level keys `models` and/or `organisms`:

    models:
      qwen3-1.7b: {model_id: Qwen/Qwen3-1.7B, dtype: bfloat16, aliases: [qwen3_1_7B]}
    organisms:
      my_organism:
        dataset: {id: me/my-data, text_column: text}
        variants:
          qwen3-1.7b:
            default: {kind: adapter, id: me/my-adapter}
            local: {kind: adapter, id: ./adapters/mine}      # relative to the catalogue folder

Later folders add to earlier ones; a model or variant that they define again replaces the earlier one. Nothing here
imports torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from diffing_mcp.core.errors import DiffingError, UnknownName
from diffing_mcp.core.settings import settings
from diffing_mcp.organisms.embedded import EMBEDDED_ID
from diffing_mcp.organisms.specs import ORGANISMS_FOLDER, BaseModelSpec, OrganismSpec

_Built = TypeVar("_Built", bound=BaseModel)

BUNDLED_FOLDER = ORGANISMS_FOLDER / "catalogue"


class CatalogueError(DiffingError):
    """A catalogue file is not what it should be. The message names the file and the key. Only operators edit
    catalogues, so paths may appear.
    """

    code = "catalogue_error"


class Catalogue(BaseModel):
    """All base models and organisms by name."""

    model_config = ConfigDict(frozen=True)

    models: dict[str, BaseModelSpec]
    organisms: dict[str, OrganismSpec]

    def has_model(self, name: str) -> bool:
        """Whether `name` is the name or an alias of a base model."""
        return self._model_name(name) is not None

    def model(self, name: str) -> BaseModelSpec:
        """The base model with this name or alias. Raises UnknownName with close matches."""
        found = self._model_name(name)
        if found is None:
            raise UnknownName(
                f"There is no base model `{name}`.{_close(name, self._model_names())} All of them: "
                f"{', '.join(self.models)}."
            )
        return self.models[found]

    def organism(self, name: str) -> OrganismSpec:
        """The organism with this name. Raises UnknownName with close matches."""
        if name not in self.organisms:
            raise UnknownName(
                f"There is no organism `{name}`.{_close(name, self.organisms)} `list_pairs` shows all of them."
            )
        return self.organisms[name]

    def _model_name(self, name: str) -> str | None:
        if name in self.models:
            return name
        return next((model.name for model in self.models.values() if name in model.aliases), None)

    def _model_names(self) -> list[str]:
        return [*self.models, *(alias for model in self.models.values() for alias in model.aliases)]


def load_catalogue() -> Catalogue:
    """The catalogue of this process: bundled files and `settings().catalogue_folders`. Read once for each setting.

    Raises:
        CatalogueError: a folder is missing or a file is wrong; the message names the file and the key.
    """
    return read_catalogue(
        (BUNDLED_FOLDER, *(Path(folder).expanduser().resolve() for folder in settings().catalogue_folders))
    )


@lru_cache(maxsize=8)
def read_catalogue(folders: tuple[Path, ...]) -> Catalogue:
    """Read and merge these catalogue folders in order. Raises CatalogueError."""
    raw_models: dict[str, dict[str, Any]] = {}
    raw_organisms: dict[str, dict[str, Any]] = {}
    origin: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise CatalogueError(
                f"The catalogue folder {folder} does not exist. Correct `catalogue_folders` "
                "(DIFFING_CATALOGUE_FOLDERS)."
            )
        for file in sorted(folder.glob("*.yaml")):
            content = _read_yaml(file)
            for name, fields in _mapping(content.get("models") or {}, file, "models").items():
                raw_models[name] = {**_mapping(fields, file, f"models.{name}"), "name": name}
                origin[f"models.{name}"] = file
            for name, fields in _mapping(content.get("organisms") or {}, file, "organisms").items():
                _merge_organism(raw_organisms, name, _mapping(fields, file, f"organisms.{name}"), file)
                origin[f"organisms.{name}"] = file
    models = {
        name: _build(BaseModelSpec, fields, origin[f"models.{name}"], f"models.{name}")
        for name, fields in raw_models.items()
    }
    _check_aliases(models, origin)
    organisms = {}
    for name, fields in raw_organisms.items():
        file = origin[f"organisms.{name}"]
        if not fields.get("variants"):
            raise CatalogueError(f"{file}: organisms.{name} has no variants.")
        for model in fields["variants"]:
            if model not in models:
                raise CatalogueError(
                    f"{file}: organisms.{name}.variants names the model `{model}`, which no catalogue file "
                    f"defines.{_close(model, models)}"
                )
            if not fields["variants"][model]:
                raise CatalogueError(f"{file}: organisms.{name}.variants.{model} has no variants.")
        # Stable sort: the embedded model comes first, and with it what an organism means when no model is named.
        fields["variants"] = dict(
            sorted(fields["variants"].items(), key=lambda item: models[item[0]].model_id != EMBEDDED_ID)
        )
        organisms[name] = _build(OrganismSpec, fields, file, f"organisms.{name}")
    return Catalogue(models=models, organisms=organisms)


if TYPE_CHECKING:
    from yaml import SafeLoader as _SafeLoader
else:  # the C loader is ten times as fast, where libyaml is there
    _SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _UniqueKeyLoader(_SafeLoader):
    """Safe loading that refuses a key written twice, which YAML itself would let the later one win silently."""


def _construct_unique(loader: yaml.SafeLoader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key `{key}` appears twice", key_node.start_mark)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_unique)


def _read_yaml(file: Path) -> Mapping[str, Any]:
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)  # a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise CatalogueError(f"{file} cannot be read: {error}") from error
    content = _mapping(content or {}, file, "the file")
    if unknown := set(content) - {"models", "organisms"}:
        raise CatalogueError(f"{file}: unknown top-level key `{min(unknown)}`; allowed are `models` and `organisms`.")
    return content


def _mapping(value: Any, file: Path, key: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise CatalogueError(f"{file}: {key} should be a mapping of names, but is {type(value).__name__}.")
    if wrong := [name for name in value if not isinstance(name, str)]:
        raise CatalogueError(
            f"{file}: {key} has the key `{wrong[0]}`, which YAML reads as {type(wrong[0]).__name__}; put it in quotes."
        )
    return value


def _merge_organism(organisms: dict[str, dict[str, Any]], name: str, fields: Mapping[str, Any], file: Path) -> None:
    """Add the fields and variants of one file to what earlier files said about the organism."""
    key = f"organisms.{name}"
    merged = organisms.setdefault(name, {"name": name, "variants": {}})
    merged.update({field: value for field, value in fields.items() if field != "variants"})
    merged["name"] = name
    for model, variants in _mapping(fields.get("variants") or {}, file, f"{key}.variants").items():
        into = merged["variants"].setdefault(model, {})
        for variant, specification in _mapping(variants, file, f"{key}.variants.{model}").items():
            values = dict(_mapping(specification, file, f"{key}.variants.{model}.{variant}"))
            for field in ("id", "base_adapter"):
                if isinstance(values.get(field), str):
                    values[field] = _absolute_if_local(values[field], file.parent)
            into[variant] = values


def _absolute_if_local(identifier: str, folder: Path) -> str:
    if identifier.startswith(("./", "../")):
        return str((folder / identifier).resolve())
    return str(Path(identifier).expanduser()) if identifier.startswith("~") else identifier


def _build(kind: type[_Built], fields: Mapping[str, Any], file: Path, key: str) -> _Built:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([key, *(str(part) for part in first["loc"])])
        raise CatalogueError(f"{file}: {where}: {first['msg']}.") from error


def _check_aliases(models: Mapping[str, BaseModelSpec], origin: Mapping[str, Path]) -> None:
    owner = dict.fromkeys(models, "")
    for model in models.values():
        for alias in model.aliases:
            if alias in owner:
                raise CatalogueError(
                    f"{origin[f'models.{model.name}']}: models.{model.name}.aliases: `{alias}` already names another "
                    "model."
                )
            owner[alias] = model.name


def _close(name: str, names: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(names), n=4, cutoff=0.5)
    return f" Did you mean {', '.join(matches)}?" if matches else ""
