"""Cheap identities of model files, and the exact question whether two models have the same weights. No torch at import.

An adapter is hashed as a whole (it is small). A full local model is identified by the SHA-256 over its configuration, and for each
safetensors file its size, its header (names, shapes, dtypes of all tensors) and 64 sampled chunks of 16 KiB spread evenly over the
data, so a 16 GB model costs 1 MB of reading. The kind of the hash is written with it (`sampled-sha256`, `sha256`). A hub model is its
commit. `same_weights` compares every byte, and stops at the first tensor that differs.
"""

from __future__ import annotations

import hashlib
import math
import threading
from pathlib import Path
from typing import Any

from model_pairs.checkpoint import read_header
from model_pairs.files import commit_of, is_local, local_folder
from model_pairs.specs import AdapterFiles, ModelFiles, ModelSource, SteeringFiles
from organisms.embedded import EMBEDDED_ID
from organisms.errors import InvalidInput
from organisms.settings import settings

_CHUNKS = 64
_CHUNK_BYTES = 16 * 1024
_EMBEDDED_VERSION = "bf16-v1"

_cache: dict[tuple[str, str, int, int], str] = {}
_cache_lock = threading.Lock()


def file_hash(path: Path, sampled: bool = False) -> str:
    """`sha256:...` over all bytes, or `sampled-sha256:...` over size, safetensors header and spread chunks. Cached by path, size and time."""
    status = path.stat()
    kind = "sampled-sha256" if sampled else "sha256"
    key = (str(path.resolve()), kind, status.st_size, status.st_mtime_ns)
    with _cache_lock:
        if key in _cache:
            return _cache[key]
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if not sampled or status.st_size <= _CHUNKS * _CHUNK_BYTES:
            while block := file.read(1 << 20):
                digest.update(block)
        else:
            digest.update(str(status.st_size).encode())
            header = file.read(8)
            digest.update(header)
            digest.update(file.read(min(int.from_bytes(header, "little"), 64 << 20)))
            for index in range(_CHUNKS):
                file.seek((status.st_size - _CHUNK_BYTES) * index // (_CHUNKS - 1))
                digest.update(file.read(_CHUNK_BYTES))
    value = f"{kind}:{digest.hexdigest()}"
    with _cache_lock:
        _cache[key] = value
    return value


def folder_hash(folder: Path, names: list[Path], sampled: bool) -> str:
    """One hash over these files of a folder, by name and content."""
    digest = hashlib.sha256()
    for path in sorted(names):
        digest.update(f"{path.name}\n{file_hash(path, sampled and path.suffix == '.safetensors')}\n".encode())
    return f"{'sampled-sha256' if sampled else 'sha256'}:{digest.hexdigest()}"


def adapter_hash(folder: Path) -> str:
    """Hash of all of an adapter: its weights and its configuration. Raises InvalidInput when they are not there."""
    files = [folder / "adapter_model.safetensors", folder / "adapter_config.json"]
    if missing := [file.name for file in files if not file.is_file()]:
        raise InvalidInput(f"An adapter folder holds adapter_config.json and adapter_model.safetensors; this one has no {' and no '.join(missing)}.")
    return folder_hash(folder, files, sampled=False)


def model_hash(folder: Path) -> str:
    """Sampled hash of a full local model: configuration, tokenizer and weights. Raises InvalidInput when there are no safetensors weights."""
    weights = weight_files(folder)
    rest = [folder / name for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja") if (folder / name).is_file()]
    return folder_hash(folder, [*weights, *rest], sampled=True)


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
    if is_local(identifier):
        return {"local": hash_local(local_folder(identifier, revision, subfolder))}
    return {"id": identifier, "revision": revision, "commit": commit_of(identifier, revision, subfolder), "subfolder": subfolder}


def model_identity(files: ModelFiles) -> dict[str, Any]:
    """What decides the results of one full model."""
    identity = _files_identity(files.id, files.revision, files.subfolder, model_hash)
    dtype = settings().dtype if settings().dtype != "auto" else files.dtype
    identity |= {"dtype": dtype, "attn_implementation": files.attn_implementation}
    if files.tokenizer_id:
        identity["tokenizer"] = Path(files.tokenizer_id).name if is_local(files.tokenizer_id) else files.tokenizer_id
    if files.chat_template:
        identity["chat_template"] = "sha256:" + hashlib.sha256(files.chat_template.encode()).hexdigest()
    return identity


def adapter_identity(adapter: AdapterFiles) -> dict[str, Any]:
    """What decides the results of an adapter."""
    return _files_identity(adapter.id, adapter.revision, adapter.subfolder, adapter_hash)


def steering_identity(steering: SteeringFiles) -> dict[str, Any]:
    """What decides the results of a steering vector."""
    path = Path(steering.path).expanduser()
    if not path.is_file():
        raise InvalidInput("The file of the steering vector does not exist; it is a safetensors file with one vector [d_model].")
    return {"local": file_hash(path), "layer": steering.layer, "strength": steering.strength}


def source_identity(source: ModelSource) -> dict[str, Any]:
    """What decides the results of one side."""
    return {
        "model": model_identity(source.files),
        "adapter": adapter_identity(source.adapter) if source.adapter else None,
        "merge": source.merge and source.adapter is not None,
        "steering": steering_identity(source.steering) if source.steering else None,
    }


def stored_bytes(folder: Path, bytes_per_parameter: int | None = None) -> int:
    """Bytes the weights of a full model take in memory, from the safetensors headers: as stored, or at so many bytes a parameter."""
    total = 0
    for path in weight_files(folder):
        for tensor in read_header(path).values():
            begin, end = tensor["data_offsets"]
            total += end - begin if bytes_per_parameter is None else math.prod(tensor["shape"]) * bytes_per_parameter
    return total


def same_weights(first: Path, second: Path) -> bool:
    """Whether two full models have the same tensors, by name and by every value; reads no further than the first difference."""
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
