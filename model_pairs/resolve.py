"""From the text a user writes to a pair: `organism[/variant][@model]`, or `BASE::FINETUNED` for any two sides. No
torch, nothing is loaded.

A side of an ad hoc pair is a catalogue model, an organism (its finetuned side), a hub id (`organisation/repository`,
with `//sub/folder` for a folder inside of it), a local folder, or a model that is reachable by URL alone
(`openai:URL#MODEL`, see `diffing_mcp.model_pairs.endpoints`); models and adapters alike. An adapter goes on the
model of the other side, or on the model that its configuration names. Where one place holds both, `#model` or
`#adapter` after it says which is meant (no hub id has a `#`, and of a folder's own name only what stands before the
last of these two counts).
"""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.model_pairs.endpoints import is_endpoint, read_endpoint
from diffing_mcp.model_pairs.files import cached_folder, is_local
from diffing_mcp.model_pairs.specs import AdapterFiles, ModelFiles, ModelSource, PairSpec, PairSummary, SteeringFiles
from diffing_mcp.organisms.catalogue import Catalogue, load_catalogue
from diffing_mcp.organisms.embedded import EMBEDDED_ID
from diffing_mcp.organisms.specs import BaseModelSpec, OrganismSpec, VariantSpec

log = logging.getLogger(__name__)

FORMS = (
    "`organism[/variant][@model]`, or `BASE::FINETUNED` with catalogue models, organisms, hub ids or local folders on "
    "either side (with `#model` or `#adapter` after a hub id or folder that holds both), or `openai:URL#MODEL` for a "
    "model behind an OpenAI-compatible address"
)

_READINGS = ("model", "adapter")
_BETWEEN_SIDES = re.compile(r"::(?![0-9A-Fa-f:.]*\])")
"""Not the colons of an IPv6 address in brackets."""

_REFERENCE = re.compile(r"^(?P<organism>[^/@]+)(?:/(?P<variant>[^@]+))?(?:@(?P<model>.+))?$")


def resolve_pair(text: str) -> PairSpec:
    """The pair that `text` names.

    Raises:
        UnknownName: no such organism, variant or model, with those that come close.
        InvalidInput: text of neither form, or an adapter whose base model cannot be told.
    """
    text = text.strip()
    parts = [part.strip() for part in _BETWEEN_SIDES.split(text)]
    if len(parts) > 1:
        if len(parts) != 2 or not all(parts):
            raise InvalidInput(f"A pair is {FORMS}; {text!r} is not.")
        return _checked(_ad_hoc(parts[0], parts[1]))
    catalogue = load_catalogue()
    match = _REFERENCE.match(text)
    if match is None or match["organism"] not in catalogue.organisms:
        raise _unknown(text, catalogue)
    return _checked(_organism_pair(catalogue, match["organism"], match["variant"], match["model"]))


def _checked(spec: PairSpec) -> PairSpec:
    """The pair, its endpoints read. Raises InvalidInput for a wrong one, and for one that shall carry an adapter."""
    for source in (spec.base, spec.finetuned):
        if source.remote:
            read_endpoint(source.files.id)
            if source.adapter is not None or source.steering is not None:
                raise InvalidInput(
                    "No adapter or steering vector can be put on a model that is reachable by URL alone. Serve the "
                    "finetuned model under a name of its own and give `openai:URL#THAT_NAME`."
                )
    return spec


def pair_names() -> list[str]:
    """References to all pairs of the catalogue, those whose files are on this machine first: of each organism its name
    alone, which stands for its first pair, then the full names.
    """
    pairs = sorted(list_pairs(), key=lambda pair: not pair.available_offline)
    return list(dict.fromkeys(name for pair in pairs for name in (pair.organism, pair.name)))


def list_pairs() -> list[PairSummary]:
    """Every pair of the catalogue, in its order (the organisms of the embedded model first)."""
    catalogue = load_catalogue()
    here: dict[tuple[str | None, str | None, str | None], bool] = {}

    def offline(
        identifier: str | None, revision: str | None, subfolder: str | None, folder: Path | None = None
    ) -> bool:
        if identifier is None:
            return True
        if folder is not None:
            return folder.exists()
        key = (identifier, revision, subfolder)
        if key not in here:
            here[key] = cached_folder(identifier, revision, subfolder) is not None
        return here[key]

    summaries = []
    for organism in catalogue.organisms.values():
        for model_name, variants in organism.variants.items():
            model = catalogue.models[model_name]
            base_here = offline(model.model_id, model.revision, model.subfolder)
            for variant_name, variant in variants.items():
                summaries.append(
                    PairSummary(
                        name=_pair_name(organism.name, variant_name, model_name),
                        organism=organism.name,
                        variant=variant_name,
                        model=model_name,
                        available_offline=base_here
                        and offline(variant.id, variant.revision, variant.subfolder, variant.local_folder)
                        and offline(
                            variant.base_adapter,
                            variant.base_revision,
                            variant.base_subfolder,
                            variant.base_local_folder,
                        ),
                    )
                )
    embedded = {name for name, model in catalogue.models.items() if model.model_id == EMBEDDED_ID}
    return sorted(summaries, key=lambda summary: summary.model not in embedded)


def model_files(model: BaseModelSpec) -> ModelFiles:
    """The files of a base model of the catalogue."""
    return ModelFiles(
        id=model.model_id,
        revision=model.revision,
        subfolder=model.subfolder,
        tokenizer_id=model.tokenizer_id,
        chat_template=model.chat_template,
        end_of_turn_token=model.end_of_turn_token,
        dtype=model.dtype,
        attn_implementation=model.attn_implementation,
        thinking_switch=model.thinking_switch,
        trust_remote_code=model.trust_remote_code,
    )


def _pair_name(organism: str, variant: str, model: str) -> str:
    return f"{organism}/{variant}@{model}"


def _organism_pair(catalogue: Catalogue, name: str, variant_name: str | None, model_name: str | None) -> PairSpec:
    organism = catalogue.organism(name)
    model_name = _model_of(catalogue, organism, model_name, variant_name)
    variants = organism.variants[model_name]
    variant_name = variant_name or organism.default_variant(model_name)
    if variant_name not in variants:
        raise UnknownName(
            f"The organism `{name}` has no variant `{variant_name}` on "
            f"{model_name}.{_close(variant_name, list(variants))} Its variants there: {', '.join(variants)}."
        )
    variant = variants[variant_name]
    files = model_files(catalogue.models[model_name])
    base, finetuned = _sides(files, variant)
    return PairSpec(
        name=_pair_name(name, variant_name, model_name),
        base=base,
        finetuned=finetuned,
        declared_identical=variant.kind == "identical",
        organism=name,
        variant=variant_name,
        model=model_name,
    )


def _model_of(catalogue: Catalogue, organism: OrganismSpec, wanted: str | None, variant: str | None) -> str:
    """Catalogue name of the base model meant: the named one, else the first that has the variant, else the organism's
    default.
    """
    if wanted is not None:
        found = catalogue.model(wanted).name
        if found not in organism.variants:
            raise UnknownName(
                f"The organism `{organism.name}` does not exist on {found}. It exists on: "
                f"{', '.join(organism.variants)}."
            )
        return found
    if variant is not None and variant not in organism.variants[organism.default_model]:
        return next(
            (model for model, variants in organism.variants.items() if variant in variants), organism.default_model
        )
    return organism.default_model


def _sides(files: ModelFiles, variant: VariantSpec) -> tuple[ModelSource, ModelSource]:
    """Base and finetuned side of one variant on a base model."""
    base = ModelSource(files=files)
    if variant.kind == "identical" or variant.id is None:
        return base, base
    place = str(variant.local_folder) if variant.local_folder is not None else variant.id
    if variant.kind == "full":
        # A finetune is talked to like its base: tokenizer and template come from its own files where it brings them.
        own = {"id": place, "revision": variant.revision, "subfolder": variant.subfolder, "tokenizer_id": None}
        return base, ModelSource(files=files.model_copy(update=own))
    if variant.kind == "steering":
        if variant.layer is None or variant.local_folder is None:
            raise InvalidInput("A steering variant names a layer and a safetensors file of this machine.")
        return base, ModelSource(
            files=files, steering=SteeringFiles(path=place, layer=variant.layer, strength=variant.strength)
        )
    adapter = AdapterFiles(id=place, revision=variant.revision, subfolder=variant.subfolder)
    if variant.kind == "adapter_pair" and variant.base_adapter is not None:
        other = str(variant.base_local_folder) if variant.base_local_folder is not None else variant.base_adapter
        base = ModelSource(
            files=files,
            adapter=AdapterFiles(id=other, revision=variant.base_revision, subfolder=variant.base_subfolder),
        )
    return base, ModelSource(files=files, adapter=adapter, merge=variant.kind == "merged")


@dataclass(frozen=True)
class _Named:
    """One side of an ad hoc pair before it is known what an adapter goes on."""

    text: str
    source: ModelSource | None
    adapter: AdapterFiles | None = None
    declared_base: str | None = None
    """Base model that the adapter's configuration names."""


def _ad_hoc(base_text: str, finetuned_text: str) -> PairSpec:
    catalogue = load_catalogue()
    base, finetuned = _named(catalogue, base_text), _named(catalogue, finetuned_text)
    base_source = _complete(catalogue, base, finetuned)
    finetuned_source = _complete(catalogue, finetuned, base)
    base_source, finetuned_source = _alike(base_source, finetuned_source), _alike(finetuned_source, base_source)
    model = next((model.name for model in catalogue.models.values() if model.model_id == base_source.files.id), None)
    return PairSpec(name=f"{base_text}::{finetuned_text}", base=base_source, finetuned=finetuned_source, model=model)


def _alike(side: ModelSource, other: ModelSource) -> ModelSource:
    """A side run and talked to like the other, as far as nothing is said of it by itself: the catalogue often knows
    one of two full models, and another implementation of attention rounds otherwise. Never its permission to run code.
    """
    if side.remote or other.remote:
        return side
    own, more = side.files, other.files
    changes = {
        name: getattr(more, name)
        for name in ("attn_implementation", "end_of_turn_token", "thinking_switch")
        if not getattr(own, name) and getattr(more, name)
    }
    return side.model_copy(update={"files": own.model_copy(update=changes)}) if changes else side


def _complete(catalogue: Catalogue, side: _Named, other: _Named) -> ModelSource:
    if side.source is not None:
        return side.source
    if other.source is not None:
        return ModelSource(files=other.source.files, adapter=side.adapter)
    declared = side.declared_base or other.declared_base
    if declared is None:
        raise InvalidInput(
            f"{side.text!r} is an adapter that does not say which model it goes on. Put the base model on the other "
            "side, or name a pair."
        )
    return ModelSource(files=_files_named(catalogue, declared), adapter=side.adapter)


def _files_named(catalogue: Catalogue, identifier: str) -> ModelFiles:
    """Files of a model id: as the catalogue describes it, if it does."""
    if catalogue.has_model(identifier):
        return model_files(catalogue.model(identifier))
    for model in catalogue.models.values():
        if model.model_id == identifier:
            return model_files(model)
    return ModelFiles(id=identifier)


def _named(catalogue: Catalogue, text: str) -> _Named:
    if catalogue.has_model(text) or text == EMBEDDED_ID:
        return _Named(text, ModelSource(files=_files_named(catalogue, text)))
    if is_endpoint(text):
        return _Named(text, ModelSource(files=ModelFiles(id=text)))
    match = _REFERENCE.match(text)
    if match is not None and match["organism"] in catalogue.organisms:
        spec = _organism_pair(catalogue, match["organism"], match["variant"], match["model"])
        return _Named(text, spec.finetuned)
    place, wanted = _reading(text)
    if is_local(place) or Path(place).is_dir():
        folder = Path(place).expanduser().resolve()
        if not folder.is_dir():
            raise UnknownName(f"There is no folder {place!r} on this machine.")
        if _chosen(place, wanted, _held([path.name for path in folder.iterdir()])) == "adapter":
            return _Named(text, None, AdapterFiles(id=str(folder)), _declared_base(folder))
        return _Named(text, ModelSource(files=ModelFiles(id=str(folder))))
    identifier, _, subfolder = place.partition("//")
    if _is_hub_id(identifier):
        sub = subfolder or None
        if _chosen(place, wanted, _hub_held(identifier, sub)) == "adapter":
            folder_here = cached_folder(identifier, None, sub)
            return _Named(
                text,
                None,
                AdapterFiles(id=identifier, subfolder=sub),
                _declared_base(folder_here) if folder_here else None,
            )
        files = _files_named(catalogue, identifier)
        return _Named(text, ModelSource(files=files.model_copy(update={"subfolder": sub}) if sub else files))
    raise _unknown(text, catalogue)


def _is_hub_id(text: str) -> bool:
    """Whether a text is `organisation/repository` as the hub allows it: no `--`, 96 characters at most."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return "/" in text


def _reading(text: str) -> tuple[str, str | None]:
    """A place, and how it is to be read: `model`, `adapter`, or None where the text does not say."""
    place, mark, wanted = text.rpartition("#")
    return (place, wanted) if mark and place and wanted in _READINGS else (text, None)


def _held(names: Sequence[str]) -> frozenset[str]:
    """What a folder with these files holds of `model` and `adapter`."""
    weights = [name for name in names if name.endswith((".safetensors", ".bin", ".gguf"))]
    adapter_weights = any(name.startswith("adapter_model.") for name in weights)
    held = set()
    if "config.json" in names and (
        "adapter_config.json" not in names or any(not name.startswith("adapter_") for name in weights)
    ):
        held.add("model")
    # Without its weights, beside a model, the configuration of an adapter is a leftover.
    if "adapter_config.json" in names and (adapter_weights or not held):
        held.add("adapter")
    return frozenset(held)


def _chosen(place: str, wanted: str | None, held: frozenset[str]) -> str:
    """How to read a place. Raises InvalidInput when it holds neither, both and nobody says which, or not what is
    wanted.
    """
    if not held:
        raise InvalidInput(f"{place!r} holds neither a model (config.json) nor an adapter (adapter_config.json).")
    if wanted is not None and wanted not in held:
        raise InvalidInput(
            f"{place!r} holds no {wanted}, only {'an adapter' if wanted == 'model' else 'a model'}. Leave out "
            f"`#{wanted}`."
        )
    if wanted is None and len(held) > 1:
        raise InvalidInput(
            f"{place!r} holds a complete model (config.json) and an adapter (adapter_config.json). Write "
            f"`{place}#model` for that model without the adapter, or `{place}#adapter` for the adapter on the model of "
            "the other side."
        )
    return wanted or next(iter(held))


def _declared_base(folder: Path) -> str | None:
    try:
        return json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, json.JSONDecodeError):
        return None


@lru_cache(maxsize=256)
def _hub_held(identifier: str, subfolder: str | None) -> frozenset[str]:
    """What a hub repository holds of `model` and `adapter`: from its files here, from the catalogue, else from the hub;
    a model when nobody knows.
    """
    folder = cached_folder(identifier, None, subfolder)
    if folder is not None:
        return _held([path.name for path in folder.iterdir()]) or frozenset({"model"})
    for organism in load_catalogue().organisms.values():
        for variants in organism.variants.values():
            for variant in variants.values():
                if variant.id == identifier:
                    return frozenset({"adapter" if variant.kind in ("adapter", "merged", "adapter_pair") else "model"})
    try:
        from huggingface_hub import HfApi

        prefix = f"{subfolder}/" if subfolder else ""
        names = [name.removeprefix(prefix) for name in HfApi().list_repo_files(identifier) if name.startswith(prefix)]
        return _held([name for name in names if "/" not in name]) or frozenset({"model"})
    except Exception as error:  # offline, or no such repository: loading says which
        log.info("cannot ask the hub about %s: %s", identifier, error)
        return frozenset({"model"})


def _close(name: str, names: list[str]) -> str:
    matches = difflib.get_close_matches(name, names, n=4, cutoff=0.5)
    return f" Did you mean {', '.join(matches)}?" if matches else ""


def _unknown(text: str, catalogue: Catalogue) -> UnknownName:
    name = re.split(r"[/@]", text)[0]
    return UnknownName(
        f"There is no pair or model {text!r}.{_close(name, [*catalogue.organisms, *catalogue.models])} A pair is "
        f"{FORMS}. `list_pairs` shows the catalogue."
    )
