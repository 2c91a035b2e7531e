"""Identities of model files by content, and the exact question whether two models have the same weights. No torch at
import.

Every byte counts: a finetune may differ from its base in one number, and a run is looked up by these hashes. A file is
read once at the speed of SHA-256; its hash is kept in memory and, for large files, in the cache folder, by path, size
and time. A hub model is its commit. `same_weights` compares every value, and stops at the first tensor that differs.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from diffing_mcp.core.atomic_files import write_synced
from diffing_mcp.core.attention import attention_of
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.settings import settings
from diffing_mcp.model_pairs.checkpoint import read_config_file, read_header
from diffing_mcp.model_pairs.endpoints import is_endpoint, read_endpoint
from diffing_mcp.model_pairs.files import cached_folder, commit_of, is_local, local_folder
from diffing_mcp.model_pairs.precision import settled_dtype
from diffing_mcp.model_pairs.specs import AdapterFiles, ModelFiles, ModelSource, PairSpec, SteeringFiles
from diffing_mcp.organisms.embedded import EMBEDDED_ID
from diffing_mcp.organisms.nulls import NULL_ID, bundled_null

_KEPT_ON_DISK = 64 << 20
"""Bytes from which on a file's hash is kept between processes."""
_READERS = 4
_READ = frozenset([".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken"])
"""Endings of the files that decide what a model or an adapter computes."""
_TOKENIZER = tuple(
    (
        "tokenizer.json tokenizer_config.json tokenizer.model vocab.json merges.txt spiece.model added_tokens.json "
        "special_tokens_map.json chat_template.jinja"
    ).split()
)
"""What decides how text is read and chats are rendered."""
_EMBEDDED_VERSION = "bf16-v1"

_cache: dict[tuple[str, int, int], str] = {}
_cache_lock = threading.Lock()


def file_hash(path: Path) -> str:
    """`sha256:...` over all bytes of a file. Cached by path, size and time."""
    key = _state(path)
    if (known := _known(key)) is not None:
        return known
    note = settings().cache_folder / "hashes" / f"{hashlib.sha256(key[0].encode()).hexdigest()[:32]}.json"
    value = _noted(note, key) if key[1] >= _KEPT_ON_DISK else None
    if value is None:
        with path.open("rb") as file:
            value = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        if key[1] >= _KEPT_ON_DISK:
            _note(note, key, value)
    with _cache_lock:
        _cache[key] = value
    return value


def _state(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns


def _known(key: tuple[str, int, int]) -> str | None:
    with _cache_lock:
        return _cache.get(key)


def _noted(note: Path, key: tuple[str, int, int]) -> str | None:
    """The hash that an earlier process found for this state of a file."""
    try:
        stored = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return (
        str(stored["hash"])
        if isinstance(stored, dict) and stored.get("key") == list(key) and "hash" in stored
        else None
    )


def _note(note: Path, key: tuple[str, int, int], value: str) -> None:
    staging = note.with_suffix(f".{threading.get_ident()}")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_synced(staging, json.dumps({"key": key, "hash": value}).encode())
        staging.replace(note)
    except OSError:  # a cache that cannot be written costs time only
        staging.unlink(missing_ok=True)


def files_state(folder: Path) -> str:
    """A name for the files of a model or an adapter as they are now, by name, size and time; reads none of them. Equal:
    nobody has written since.
    """
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix in _READ and path.is_file():
            status = path.stat()
            found.append(f"{path.name} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join([str(folder.resolve()), *found]).encode()).hexdigest()[:16]


def folder_hash(paths: list[Path]) -> str:
    """One hash over files, by name and content; several are read at a time."""
    ordered = sorted(paths)
    hashes = [_known(_state(path)) for path in ordered]
    if None in hashes:
        with ThreadPoolExecutor(_READERS) as pool:
            hashes = list(pool.map(file_hash, ordered))
    digest = hashlib.sha256()
    for path, value in zip(ordered, hashes, strict=True):
        digest.update(f"{path.name}\n{value}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def adapter_hash(folder: Path) -> str:
    """Hash of all of an adapter: its weights and its configuration. Raises InvalidInput when they are not there."""
    files = [folder / "adapter_model.safetensors", folder / "adapter_config.json"]
    if missing := [file.name for file in files if not file.is_file()]:
        raise InvalidInput(
            "An adapter folder holds adapter_config.json and adapter_model.safetensors; this one has no "
            f"{' and no '.join(missing)}."
        )
    return folder_hash(files)


def model_hash(folder: Path) -> str:
    """Hash of a full local model: configuration, tokenizer and weights. Raises InvalidInput when there are no
    safetensors weights.
    """
    weights = weight_files(folder)
    return folder_hash(
        [*weights, *(path for path in [folder / "config.json"] if path.is_file()), *files_beside(folder)]
    )


def files_beside(folder: Path) -> list[Path]:
    """The files of a model that decide how it is talked to and when its answers end."""
    return [path for path in [folder / "generation_config.json"] if path.is_file()] + _tokenizer_paths(folder)


def _tokenizer_paths(folder: Path) -> list[Path]:
    return [folder / name for name in _TOKENIZER if (folder / name).is_file()]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a full model. Raises InvalidInput when there are none."""
    files = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter_"))
    if not files:
        raise InvalidInput(
            "This model has no safetensors weights; other formats are not read because they can execute code. "
            "Convert it once with `save_pretrained` of transformers and name the folder."
        )
    return files


def _files_identity(identifier: str, revision: str | None, subfolder: str | None, hash_local: Any) -> dict[str, Any]:
    if identifier == EMBEDDED_ID:
        return {"id": identifier, "version": _EMBEDDED_VERSION}
    if identifier.startswith(NULL_ID):
        return {"id": bundled_null(identifier).made_name, "version": _EMBEDDED_VERSION}
    if is_local(identifier):
        return {"local": hash_local(local_folder(identifier, revision, subfolder))}
    return {
        "id": identifier,
        "revision": revision,
        "commit": commit_of(identifier, revision, subfolder),
        "subfolder": subfolder,
    }


def model_identity(files: ModelFiles) -> dict[str, Any]:
    """What decides the results of one full model; of an endpoint, its address and the name of the model there."""
    if is_endpoint(files.id):
        endpoint = read_endpoint(files.id)
        return {"endpoint": endpoint.url, "model": endpoint.model}
    identity = _files_identity(files.id, files.revision, files.subfolder, model_hash)
    dtype = settings().dtype if settings().dtype != "auto" else files.dtype
    identity |= {"dtype": dtype, "attn_implementation": _attention(files)}
    if files.tokenizer_id:
        local = is_local(files.tokenizer_id)
        identity["tokenizer"] = (
            folder_hash(_tokenizer_paths(local_folder(files.tokenizer_id))) if local else files.tokenizer_id
        )
    if files.chat_template:
        identity["chat_template"] = "sha256:" + hashlib.sha256(files.chat_template.encode()).hexdigest()
    return identity


def _attention(files: ModelFiles) -> str | None:
    """See `attention_of`; what the source names while the files are not on this machine."""
    if files.id == EMBEDDED_ID or files.id.startswith(NULL_ID):
        return files.attn_implementation
    folder = cached_folder(files.id, files.revision, files.subfolder)
    if folder is None or not (folder / "config.json").is_file():
        return files.attn_implementation
    return attention_of(files.attn_implementation, read_config_file(folder))


def adapter_identity(adapter: AdapterFiles) -> dict[str, Any]:
    """What decides the results of an adapter: its weights, and the tokenizer and chat template that it may bring."""
    identity = _files_identity(adapter.id, adapter.revision, adapter.subfolder, adapter_hash)
    if is_local(adapter.id) and (
        paths := _tokenizer_paths(local_folder(adapter.id, adapter.revision, adapter.subfolder))
    ):
        identity["tokenizer"] = folder_hash(paths)
    return identity


def steering_identity(steering: SteeringFiles) -> dict[str, Any]:
    """What decides the results of a steering vector."""
    path = Path(steering.path).expanduser()
    if not path.is_file():
        raise InvalidInput(
            "The file of the steering vector does not exist; it is a safetensors file with one vector [d_model]."
        )
    return {"local": file_hash(path), "layer": steering.layer, "strength": steering.strength}


def source_identity(source: ModelSource) -> dict[str, Any]:
    """What decides the results of one side."""
    return {
        "model": model_identity(source.files),
        "adapter": adapter_identity(source.adapter) if source.adapter else None,
        "merge": source.merge and source.adapter is not None,
        "steering": steering_identity(source.steering) if source.steering else None,
    }


def pair_identity(spec: PairSpec) -> dict[str, Any]:
    """Everything that decides results, as JSON values: hub ids with commits, hashes of local files, subfolders, dtype,
    merge, steering.

    Names and local paths are left out: the same files under another path are the same pair. Hashes are cached by path,
    size and time.
    """
    identity = {"base": source_identity(spec.base), "finetuned": source_identity(spec.finetuned)}
    if not spec.remote and (settled := settled_dtype(spec.base.files, spec.finetuned.files)):
        for side in identity.values():
            side["model"]["dtype"] = settled
    return identity


def stored_bytes(folder: Path, bytes_per_parameter: int | None = None) -> int:
    """Bytes the weights of a full model take in memory, from the safetensors headers: as stored, or at so many bytes a
    parameter.
    """
    total = 0
    for path in weight_files(folder):
        for tensor in read_header(path).values():
            begin, end = tensor["data_offsets"]
            total += end - begin if bytes_per_parameter is None else math.prod(tensor["shape"]) * bytes_per_parameter
    return total


def same_weights(first: Path, second: Path) -> bool:
    """Whether two full models have the same tensors, by name and by every value; reads no further than the first
    difference.
    """
    import torch
    from safetensors import safe_open

    def tensors(folder: Path) -> dict[str, Path]:
        names: dict[str, Path] = {}
        for path in weight_files(folder):
            with safe_open(path, framework="pt") as file:
                names.update(dict.fromkeys(file.keys(), path))
        return names

    if first.resolve() == second.resolve():
        return True
    left, right = tensors(first), tensors(second)
    if left.keys() != right.keys():
        return False
    for name in sorted(left):
        with safe_open(left[name], framework="pt") as one, safe_open(right[name], framework="pt") as other:
            a, b = one.get_tensor(name), other.get_tensor(name)
            if a.shape != b.shape or not torch.equal(a.float(), b.float()):
                return False
    return True
