"""Collections of activations on disk, under `data_folder/activations/<key>`: reading, listing and deleting them.
Written by `activation_collection`.

A collection folder holds `index.json` (exactly what is there), `tokens.safetensors` (token ids and where samples start)
and a folder a shard with one raw file a layer and side (`L14-base.bin`, rows [N, d_model] in the stored dtype,
little-endian) and `statistics.safetensors` (float64 moments).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from diffing_mcp.core.atomic_files import discard
from diffing_mcp.core.errors import InvalidInput, NotTheSame, UnknownName
from diffing_mcp.model_pairs.fingerprint import pair_identity

if TYPE_CHECKING:
    from filelock import FileLock
    from torch import Tensor

    from diffing_mcp.model_pairs.specs import PairSpec
    from diffing_mcp.preprocessing.activation_rows import ActivationRows, Moments

FORMAT = 1
SIDES = ("base", "finetuned")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class ShardIndex(BaseModel):
    """One finished shard: whole samples [first_sample, last_sample), rows [start, stop)."""

    name: str
    first_sample: int
    last_sample: int
    start: int
    stop: int
    files: dict[str, str] = Field(default_factory=dict, description="File name -> sha256.")


class CollectionIndex(BaseModel):
    """What a collection holds. Names real models: never show it to a blinded agent as it stands."""

    format: int = FORMAT
    id: str
    key: str
    finished: bool
    pair_name: str
    pair: dict[str, Any] = Field(description="fingerprint.pair_identity")
    params: dict[str, Any]
    corpus: dict[str, str] = Field(description="Id and content hash, and which rows were dropped.")
    text: dict[str, Any] = Field(description="Hash of the token ids, what position 0 is, documents dropped.")
    layers: list[int] = Field(description="Absolute layers; rows are the residual stream after them.")
    num_layers: int
    d_model: int
    dtype: Literal["float32", "bfloat16", "float16"]
    skip_first: int
    tokens: int
    samples: int
    plan: list[ShardIndex] = Field(description="All shards of the finished collection.")
    shards: list[ShardIndex] = Field(default_factory=list, description="Those that are there, in order.")
    created: datetime
    seconds: float = 0.0
    bytes: int = 0
    versions: dict[str, str] = Field(default_factory=dict)
    content_hash: str = Field("", description="Of all files, once finished.")

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of one layer and side."""
        return self.d_model * (4 if self.dtype == "float32" else 2)


def file_name(layer: int, side: str) -> str:
    """Name of a shard's file."""
    return f"L{layer}-{side}.bin"


@dataclass(frozen=True)
class StoredRows:
    """The rows of one layer in the shards' files: `diffing_mcp.preprocessing.activation_rows.RowSource`. Every read is
    one contiguous range a file.
    """

    folder: Path
    index: CollectionIndex
    layer: int

    @cached_property
    def _starts(self) -> list[int]:
        return [shard.start for shard in self.index.shards]

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See `RowSource`."""
        import bisect

        import torch

        first = max(0, bisect.bisect_right(self._starts, start) - 1)
        last = bisect.bisect_left(self._starts, stop)
        base, finetuned = (
            torch.cat(
                [
                    self._part(shard, side, max(start, shard.start), min(stop, shard.stop))
                    for shard in self.index.shards[first:last]
                ]
            )
            for side in SIDES
        )
        return base, finetuned

    def _part(self, shard: ShardIndex, side: str, start: int, stop: int) -> Tensor:
        import numpy as np
        import torch

        size = self.index.row_bytes
        path = self.folder / shard.name / file_name(self.layer, side)
        try:
            content = np.fromfile(
                path, dtype=np.uint8, count=(stop - start) * size, offset=(start - shard.start) * size
            )
        except FileNotFoundError as error:
            raise UnknownName(f"The collection {self.index.id} was deleted while it was read.") from error
        if content.size != (stop - start) * size:
            raise NotTheSame(
                f"A file of the collection {self.index.id} is shorter than its index says. Delete the collection and "
                "collect it again."
            )
        return torch.from_numpy(content).view(getattr(torch, self.index.dtype)).view(stop - start, self.index.d_model)


class ActivationStore:
    """The collections under one folder. Any number of processes may read and write it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def list(self) -> Sequence[CollectionIndex]:
        """All collections, also unfinished ones, newest first; not those of `broken`."""
        found = [index for name in self._digests() if (index := self.read(name)) is not None]
        return sorted(found, key=lambda index: index.created, reverse=True)

    def broken(self) -> Sequence[str]:
        """Keys of collections whose index is missing or cannot be read. They can be deleted; collecting the same again
        replaces them.
        """
        return [name for name in sorted(self._digests()) if self.read(name) is None]

    def _digests(self) -> Sequence[str]:
        return (
            [entry.name for entry in self.folder.iterdir() if _DIGEST.fullmatch(entry.name)]
            if self.folder.is_dir()
            else []
        )

    def read(self, digest: str) -> CollectionIndex | None:
        """The collection of that key, None when there is none."""
        try:
            return CollectionIndex.model_validate_json(
                (self.folder / digest / "index.json").read_text(encoding="utf-8")
            )
        except (OSError, ValidationError, UnicodeDecodeError):
            return None

    def get(self, identifier: str) -> CollectionIndex:
        """The collection with that id or key, or with one that starts so when it is the only one.

        Raises:
            UnknownName: none, or several.
            InvalidInput: its index cannot be read.
        """
        digest = self.key_of(identifier)
        index = self.read(digest)
        if index is None:
            raise InvalidInput(
                f"The index of the collection {short_id(digest)} cannot be read, so its rows cannot be told apart. "
                "Delete it (delete_activations, `diffing activations delete`) and collect again."
            )
        return index

    def key_of(self, identifier: str) -> str:
        """The key of the collection with that id or key, or with one that starts so when it is the only one, whether
        its index can be read or not.

        Raises:
            UnknownName: none, or several.
        """
        start = identifier.strip().removeprefix("activations-")
        names = [name for name in self._digests() if re.fullmatch(r"[0-9a-f]{2,64}", start) and name.startswith(start)]
        if len(names) != 1:
            problem = "several collections start with" if names else "there is no collection"
            raise UnknownName(
                f"{problem} {identifier!r}; list_activations (`diffing activations list`) gives them all, "
                "collect_activations makes one"
            )
        return names[0]

    def finished(self, identifier: str) -> CollectionIndex:
        """The finished collection with that id or key, or with one that starts so when it is the only one.

        Raises:
            UnknownName: none, or several.
            InvalidInput: it is not finished, or its index cannot be read.
        """
        index = self.get(identifier)
        if not index.finished:
            raise InvalidInput(
                f"The collection {index.id} is not finished ({len(index.shards)} of {len(index.plan)} shards). Call "
                "collect_activations (`diffing activations collect`) with its parameters again to go on."
            )
        return index

    def open(
        self, identifier: str, spec: PairSpec, layers: Sequence[int], limit: int | None = None
    ) -> dict[int, ActivationRows]:
        """Readers of a finished collection of this pair: its first `limit` rows, or all.

        Raises:
            UnknownName: none, or several.
            InvalidInput: unfinished, of another pair, or without one of the layers.
        """
        import torch
        from safetensors.torch import load_file

        from diffing_mcp.preprocessing.activation_rows import ActivationRows, default_pool_rows

        index = self.finished(identifier)
        if index.pair != pair_identity(spec):
            raise InvalidInput(f"The collection {index.id} is of another pair. Name a collection of this one.")
        if missing := [layer for layer in layers if layer not in index.layers]:
            raise InvalidInput(
                f"The collection {index.id} holds the layers {', '.join(map(str, index.layers))} of "
                f"{index.num_layers}, not {', '.join(map(str, missing))}. Ask for one of them, or collect again."
            )
        folder = self.folder / index.key
        try:
            tokens = load_file(folder / "tokens.safetensors")
        except FileNotFoundError as error:
            raise UnknownName(f"The collection {index.id} was deleted in the meantime.") from error
        return {
            layer: ActivationRows(
                layer=layer,
                d_model=index.d_model,
                num_tokens=index.tokens if limit is None else min(limit, index.tokens),
                content_hash=f"{index.content_hash}:{layer}",
                starts=tokens["starts"],
                token_ids=tokens["token_ids"],
                first_position=index.skip_first,
                source=StoredRows(folder, index, layer),
                pool_rows=default_pool_rows(index.d_model, getattr(torch, index.dtype)),
            )
            for layer in layers
        }

    def statistics(self, index: CollectionIndex, layer: int) -> dict[str, Moments]:
        """Moments of the base, the finetuned and the difference rows of a layer, over all shards that are there."""
        from safetensors import safe_open

        from diffing_mcp.preprocessing.activation_rows import STATISTICS, Moments

        merged: dict[str, Moments] = {}
        for shard in index.shards:
            with safe_open(self.folder / index.key / shard.name / "statistics.safetensors", framework="pt") as file:
                for name in STATISTICS:
                    mean, squares = (file.get_tensor(f"{layer}.{name}.{part}") for part in ("mean", "squares"))
                    found = Moments(shard.stop - shard.start, mean, squares)
                    merged[name] = merged[name].merged(found) if name in merged else found
        return merged

    def damaged(self, index: CollectionIndex) -> Sequence[str]:
        """Files that are missing or whose content is no longer what was written. Reads everything."""
        wrong = []
        for shard in index.shards:
            for name, digest in shard.files.items():
                path = self.folder / index.key / shard.name / name
                if not path.is_file() or file_hash(path) != digest:
                    wrong.append(f"{shard.name}/{name}")
        return wrong

    def lock(self, key: str) -> FileLock:
        """Held while a collection is written or deleted; a dead process holds none."""
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / f".lock-{key}")

    def delete(self, identifier: str) -> str:
        """Remove a collection, finished, unfinished or broken, and return its id. It becomes invisible at once, then
        its files go.

        Raises:
            UnknownName: none, or several.
            InvalidInput: it is being collected.
        """
        from filelock import Timeout

        key = self.key_of(identifier)
        try:
            with self.lock(key).acquire(timeout=0):
                discard(self.folder / key)
        except Timeout as error:
            raise InvalidInput(f"The collection {short_id(key)} is being collected. Cancel that first.") from error
        except FileNotFoundError as error:
            raise UnknownName(f"The collection {short_id(key)} was deleted in the meantime.") from error
        return short_id(key)


def short_id(key: str) -> str:
    """The id of the collection with this key."""
    return f"activations-{key[:12]}"


def file_hash(path: Path) -> str:
    """sha256 of a file, in hex."""
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def default_activation_store() -> ActivationStore:
    """The store in the data folder of the settings."""
    from diffing_mcp.core.settings import settings

    return ActivationStore(settings().data_folder / "activations")
