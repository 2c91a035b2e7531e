"""Do the two sides of a pair fit together, and are they different at all? Asked of files, before anything large is
loaded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffing_mcp.core.errors import InvalidInput, NotTheSame
from diffing_mcp.model_pairs.files import local_folder
from diffing_mcp.model_pairs.fingerprint import file_hash, files_beside, same_weights
from diffing_mcp.model_pairs.layers import resolve_layer
from diffing_mcp.model_pairs.specs import AdapterFiles, ModelFiles, ModelSource, PairSpec, SteeringFiles

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.interventions import Intervention

_PROBES = ("The quick brown fox, 1234.", "  indented\n\tcode(x) = y;", "Größe naïve 東京 🙂", "don't can't")


def check_configs(base: Any, finetuned: Any) -> None:
    """Raise NotTheSame when two full models have other layers or widths. Arguments are transformers configurations."""
    base, finetuned = base.get_text_config(), finetuned.get_text_config()
    for field, name in (("num_hidden_layers", "layers"), ("hidden_size", "dimensions")):
        if getattr(base, field) != getattr(finetuned, field):
            raise NotTheSame(
                f"The models differ in shape: the base model has {getattr(base, field)} {name}, the finetuned model "
                f"{getattr(finetuned, field)}. Name a finetune of this base model."
            )


def check_vocabularies(base: Any, finetuned: Any, known: int, same_ids: bool) -> int:
    """The number of token ids that both full models have: what is compared of their next-token distributions.

    A finetune may have more rows in its unembedding (tokens that it added, padding), or fewer (padding cut off).
    Arguments are transformers configurations; `known` is one more than the highest id of the base's tokenizer that the
    base has a row for, `same_ids` whether each side brought a tokenizer and `check_tokenizers` found their common ids
    to mean the same.

    Raises:
        NotTheSame: a side has no row for a token that the base's tokenizer knows, or the sizes differ and no tokenizer
            says why.
    """
    sizes = base.get_text_config().vocab_size, finetuned.get_text_config().vocab_size
    common = min(sizes)
    if sizes[0] == sizes[1]:
        return common
    if known > common or not same_ids:
        reason = f"{known} are in use" if known > common else "no tokenizer of its own says what that means"
        raise NotTheSame(
            f"The vocabularies differ: the base model has {sizes[0]} entries, the finetuned model {sizes[1]}, and "
            f"{reason}. Their next-token distributions cannot be compared; name a finetune of this base model, with "
            "its tokenizer."
        )
    return common


def added_tokens(base: Any, finetuned: Any) -> dict[int, str]:
    """Tokens that only the finetuned tokenizer knows: id -> text, in the order of their ids."""
    known = set(base.get_vocab().values())
    return {
        index: token
        for token, index in sorted(finetuned.get_vocab().items(), key=lambda item: item[1])
        if index not in known
    }


def check_tokenizers(base: Any, finetuned: Any) -> None:
    """Raise NotTheSame when two tokenizers give some id another meaning, or cut text otherwise.

    A finetune may add tokens at ids that the base's tokenizer leaves free.
    """
    first, second = base.get_vocab(), finetuned.get_vocab()
    by_id = {index: token for token, index in first.items()}
    moved = [
        token for token, index in second.items() if first.get(token, index) != index or by_id.get(index, token) != token
    ]
    if moved:
        token = moved[0]
        raise NotTheSame(
            f"The tokenizers differ in {len(moved)} tokens: {token!r} has the id {second[token]} on the finetuned "
            f"side, on the base side that id is {by_id.get(second[token])!r}. The same ids would mean different texts; "
            "name a finetune of this base model."
        )
    for text in _PROBES:
        if base(text, add_special_tokens=False)["input_ids"] != finetuned(text, add_special_tokens=False)["input_ids"]:
            raise NotTheSame(
                f"The tokenizers have the same tokens but cut text differently (for instance {text!r}). Name a "
                "finetune of this base model."
            )


def adapter_remarks(source: ModelSource) -> list[str]:
    """What should be said of a side's adapter: it declares another base model than the one that it was put on."""
    if source.adapter is None:
        return []
    from diffing_mcp.model_pairs.adapter_files import read_adapter

    declared = read_adapter(
        local_folder(source.adapter.id, source.adapter.revision, source.adapter.subfolder)
    ).declared_base
    if declared is None or _short_name(declared) == _short_name(source.files.id):
        return []
    return [
        (
            f"The adapter says that it was trained on {declared!r}, and it was put on {source.files.id!r}: its effect "
            "is the trained one only if these are the same weights."
        )
    ]


def _short_name(identifier: str) -> str:
    """Last piece of a hub id, path or embedded model's name, in lower case."""
    return re.split(r"[/\\:]", identifier.rstrip("/"))[-1].lower()


def _effective_adapter(adapter: AdapterFiles | None) -> str | None:
    """Content name of an adapter that changes something; None for none or one that is zero."""
    if adapter is None:
        return None
    from diffing_mcp.model_pairs.adapter_files import adapter_name, read_adapter

    stored = read_adapter(local_folder(adapter.id, adapter.revision, adapter.subfolder))
    return None if stored.changes_nothing else adapter_name(stored.folder)


def read_vector(steering: SteeringFiles) -> Any:
    """The steering vector [d_model], float32 torch tensor. Raises InvalidInput unless the file holds exactly one
    vector.
    """
    from pathlib import Path

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(Path(steering.path).expanduser())
    except (OSError, SafetensorError) as error:
        raise InvalidInput(
            "The steering vector's file cannot be read; it is a safetensors file with exactly one vector [d_model]."
        ) from error
    if len(tensors) != 1 or next(iter(tensors.values())).ndim != 1:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        raise InvalidInput(f"A steering file holds exactly one vector [d_model]; this one holds {shapes}.")
    return next(iter(tensors.values())).float()


def _effective_steering(steering: SteeringFiles | None) -> tuple[Any, ...] | None:
    if steering is None:
        return None
    vector = read_vector(steering) * steering.strength
    return (steering.layer, *vector.tolist()) if bool(vector.any()) else None


def same_model(base: ModelFiles, finetuned: ModelFiles) -> bool:
    """Whether two full models have equal weights: the same files, or byte for byte the same tensors."""
    places = [
        (files.id, files.revision, files.subfolder, files.dtype, files.attn_implementation)
        for files in (base, finetuned)
    ]
    if places[0] == places[1]:
        return True
    return same_weights(
        local_folder(base.id, base.revision, base.subfolder),
        local_folder(finetuned.id, finetuned.revision, finetuned.subfolder),
    )


def sides_equal(base: ModelSource, finetuned: ModelSource) -> bool:
    """Whether the two sides compute the same under equal configurations: equal weights, adapters that are equal or
    zero, equal or no steering.
    """
    return (
        _effective_adapter(base.adapter) == _effective_adapter(finetuned.adapter)
        and _effective_steering(base.steering) == _effective_steering(finetuned.steering)
        and same_model(base.files, finetuned.files)
    )


def check_different(spec: PairSpec, configuration: Sequence[str] = ()) -> None:
    """Raise NotTheSame when the two sides are identical and the pair does not say that they are. `configuration`: where
    their configurations differ (`config_differences`).
    """
    if spec.declared_identical or configuration or not sides_equal(spec.base, spec.finetuned):
        return
    other = _other_files(spec.base.files, spec.finetuned.files)
    told = (
        f"Their folders differ in {', '.join(other)}, which decide how a model is talked to and when its answers end, "
        "not what it computes. "
        if other
        else ""
    )
    raise NotTheSame(
        "The two sides of this pair are identical: the finetuned side has the weights of the base (or an adapter "
        f"or steering vector that is zero), so every difference would be exactly zero. {told}Name another finetuned "
        "side; a null is declared in a catalogue (`kind: identical`)."
    )


def _other_files(base: ModelFiles, finetuned: ModelFiles) -> list[str]:
    """Names of the files beside weights and configuration in which two models differ."""
    folders = [local_folder(files.id, files.revision, files.subfolder) for files in (base, finetuned)]
    found = [{path.name: path for path in files_beside(folder)} for folder in folders]
    return [
        name
        for name in sorted({*found[0], *found[1]})
        if name not in found[0] or name not in found[1] or file_hash(found[0][name]) != file_hash(found[1][name])
    ]


def steering_of(source: ModelSource, num_layers: int, d_model: int) -> tuple[Intervention, ...]:
    """The side's steering vector as an intervention. Raises NotTheSame when it has other dimensions than the model."""
    if source.steering is None:
        return ()
    from diffing_mcp.model_pairs.interventions import Intervention

    vector = read_vector(source.steering)
    if vector.shape[0] != d_model:
        raise NotTheSame(
            f"The steering vector has {vector.shape[0]} dimensions, the model's residual stream {d_model}."
        )
    return (Intervention(resolve_layer(source.steering.layer, num_layers).absolute, vector, source.steering.strength),)
