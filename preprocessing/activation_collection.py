"""Collecting activations to disk: both sides in one pass, shard after shard, resumable at the last finished shard.

A shard holds whole samples in the order of the text. It is written beside its place, synced and renamed, then the index
names it: whatever the index names is complete. Rows go to their place in the shard's files batch by batch.

A shard is one corpus pass. Two models that do not fit into memory together (`pair.sequential`) are loaded in turn, one
of them a shard (each pass begins with the model that is there), so their shards are larger: a shard is then worth its
load.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from pydantic import ConfigDict, Field

from diffing_mcp.core.atomic_files import DISK_FULL, held, library_versions, replace_synced, sync_folder, write_synced
from diffing_mcp.core.errors import InvalidInput, OutOfRoom
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.core.undivided import working_time
from diffing_mcp.model_pairs.fingerprint import pair_identity
from diffing_mcp.model_pairs.layers import Layer
from diffing_mcp.preprocessing.activation_sources import ActivationTextParams, read_text
from diffing_mcp.preprocessing.activation_store import (
    FORMAT,
    SIDES,
    ActivationStore,
    CollectionIndex,
    ShardIndex,
    file_hash,
    file_name,
    short_id,
)
from diffing_mcp.preprocessing.corpora import corpus_identity
from diffing_mcp.preprocessing.precision import model_dtype
from diffing_mcp.preprocessing.text_sources import corpus_part

if TYPE_CHECKING:
    from torch import Tensor

    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import PairSpec
    from diffing_mcp.preprocessing.activation_rows import KeptText

SHARD_BYTES = 2**30
"""Bytes of a shard, all layers and both sides (one sample at least)."""
SEQUENTIAL_SHARD_BYTES = 16 * 2**30
"""The same where every shard loads a model; half of it is spooled besides while the shard is written (see
`diffing_mcp.preprocessing.spool`).
"""
SPARE_BYTES = 2**26
"""Disk that is left free."""
_WRITING = ".writing-"


class CollectionParams(ActivationTextParams):
    """What is collected."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: tuple[Layer, ...] = Field(
        (0.5,),
        min_length=1,
        max_length=256,
        description="Relative depths in [0, 1] (floats) or absolute layers (integers).",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Stored number format; `auto`: that of the models."
    )


def collection_key(spec: PairSpec, params: CollectionParams) -> str:
    """sha256, in hex, of everything that decides the rows. Loads the documents, not the models."""
    decisive = [FORMAT, pair_identity(spec), params.model_dump(mode="json"), corpus_identity(corpus_part(params))]
    return hashlib.sha256(
        json.dumps(decisive, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    ).hexdigest()


def find_collection(store: ActivationStore, spec: PairSpec, params: CollectionParams) -> CollectionIndex | None:
    """The finished collection of these parameters, or None. Loads no model."""
    index = store.read(collection_key(spec, params))
    return index if index is not None and index.finished else None


def collect(
    store: ActivationStore, pair: LoadedPair, params: CollectionParams, progress: Progress = silent
) -> CollectionIndex:
    """The finished collection: looked up, gone on with at its last finished shard, or made.

    A second process that collects the same waits for the first.

    Raises:
        InvalidInput: a layer out of range, no tokens, or values beyond the dtype's range.
        OutOfRoom: not enough disk, before anything is written or while it is.
        Cancelled: from `progress`; finished shards stay.
    """
    key = collection_key(pair.spec, params)
    try:
        with held(store.lock(key), progress, "waiting for another process that collects the same"):
            known = store.read(key)
            if known is not None and known.finished:
                return known
            return _collect(store, pair, params, key, known, progress)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise OutOfRoom(
            "The disk became full while activations were written. Finished shards are kept: free space and call again "
            "to go on."
        ) from error


def _collect(
    store: ActivationStore,
    pair: LoadedPair,
    params: CollectionParams,
    key: str,
    known: CollectionIndex | None,
    progress: Progress,
) -> CollectionIndex:
    from safetensors.torch import save

    text = read_text(pair, params)
    index = _new_index(pair, params, key, text)
    folder = store.folder / key
    if known is not None and _decides(known) == _decides(index):
        index = known
    else:
        shutil.rmtree(folder, ignore_errors=True)
    # Anew also for what is left of a collection that was begun with shards of another size.
    shard_bytes = SEQUENTIAL_SHARD_BYTES if pair.sequential else SHARD_BYTES
    index.plan = _plan(text, max(1, shard_bytes // (2 * len(index.layers) * index.row_bytes)), index.shards)
    _clean(folder, index)
    _check_room(store.folder, index, pair.sequential)
    folder.mkdir(parents=True, exist_ok=True)
    if not index.shards:
        write_synced(folder / "tokens.safetensors", save({"token_ids": text.token_ids, "starts": text.starts}))
        _write_index(folder, index)
    for planned in index.plan[len(index.shards) :]:
        started = working_time()
        shard = _write_shard(folder, pair, index, planned, text, progress)
        index.shards.append(shard)
        index.seconds = round(index.seconds + working_time() - started, 3)
        _write_index(folder, index)
    digest = hashlib.sha256(json.dumps([shard.model_dump() for shard in index.shards], sort_keys=True).encode())
    index.content_hash, index.finished = digest.hexdigest(), True
    index.bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    _write_index(folder, index)
    return index


def _write_index(folder: Path, index: CollectionIndex) -> None:
    replace_synced(folder / "index.json", index.model_dump_json(indent=1).encode())


def _decides(index: CollectionIndex) -> dict[str, Any]:
    return index.model_dump(include={"format", "pair", "text", "layers", "dtype", "skip_first", "tokens", "versions"})


def _new_index(pair: LoadedPair, params: CollectionParams, key: str, text: KeptText) -> CollectionIndex:
    from diffing_mcp.model_pairs.layers import resolve_layers

    layers = sorted(reference.absolute for reference in resolve_layers(params.layers, pair.num_layers))
    dtype = str(model_dtype(pair)).removeprefix("torch.") if params.dtype == "auto" else params.dtype
    return CollectionIndex(
        id=short_id(key),
        key=key,
        finished=False,
        pair_name=pair.spec.name,
        pair=pair_identity(pair.spec),
        params=params.model_dump(mode="json"),
        corpus=corpus_identity(corpus_part(params)),
        text={
            "sha256": text.corpus.sha,
            "position_origin": text.corpus.position_origin,
            "dropped": text.corpus.dropped.count,
        },
        layers=layers,
        num_layers=pair.num_layers,
        d_model=pair.d_model,
        dtype=dtype,
        skip_first=text.skip_first,
        tokens=text.num_tokens,
        samples=len(text.corpus.ids),
        plan=[],
        created=datetime.now(UTC),
        versions=library_versions(),
    )


def _plan(text: KeptText, shard_rows: int, done: Sequence[ShardIndex]) -> list[ShardIndex]:
    """Those that are done, then shards of whole samples with at most `shard_rows` rows (or one sample)."""
    import numpy as np

    starts = text.starts.numpy()
    plan = [shard.model_copy(update={"files": {}}) for shard in done]
    first = plan[-1].last_sample if plan else 0
    while first < len(starts) - 1:
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + shard_rows, side="right")) - 1)
        name = f"shard-{len(plan):05}"
        plan.append(
            ShardIndex(
                name=name, first_sample=first, last_sample=last, start=int(starts[first]), stop=int(starts[last])
            )
        )
        first = last
    return plan


def _clean(folder: Path, index: CollectionIndex) -> None:
    """Remove what a killed process left: half-written shards, and one that was renamed but not yet in the index."""
    known = {shard.name for shard in index.shards}
    for leftover in folder.glob("*shard-*"):
        if leftover.name not in known:
            shutil.rmtree(leftover, ignore_errors=True)


def _check_room(folder: Path, index: CollectionIndex, sequential: bool) -> None:
    from diffing_mcp.preprocessing.spool import spool_folder

    left = index.tokens - (index.shards[-1].stop if index.shards else 0)
    needed = 2 * len(index.layers) * index.row_bytes * left
    if sequential and spool_folder().stat().st_dev == folder.stat().st_dev:
        largest = max((shard.stop - shard.start for shard in index.plan[len(index.shards) :]), default=0)
        needed += len(index.layers) * index.row_bytes * largest
    free = shutil.disk_usage(folder).free
    if needed + SPARE_BYTES > free:
        raise OutOfRoom(
            f"These activations take {needed / 2**20:.0f} MiB of disk ({left} tokens, {len(index.layers)} layers, "
            f"{index.dtype}) and {free / 2**20:.0f} MiB are free. Lower max_samples, max_tokens or "
            "max_activation_tokens, ask for fewer layers or bfloat16, or free space."
        )


def _write_shard(
    folder: Path, pair: LoadedPair, index: CollectionIndex, planned: ShardIndex, text: KeptText, progress: Progress
) -> ShardIndex:
    import torch
    from safetensors.torch import save

    from diffing_mcp.preprocessing.activation_rows import RowCollector
    from diffing_mcp.preprocessing.corpus_pass import run_corpus_pass

    staging = folder / f"{_WRITING}{planned.name}"
    staging.mkdir()
    part = text.part(planned.first_sample, planned.last_sample)

    def overall(done: float, total: float | None = None, message: str = "") -> None:
        share = done / total if total else 0.0
        progress(planned.start + share * (planned.stop - planned.start), index.tokens, message)

    with _ShardFiles(staging, index.layers, index.row_bytes) as files:
        collector = RowCollector(part, index.layers, getattr(torch, index.dtype), files)
        run_corpus_pass(pair, part.corpus, [collector], overall)
    tensors: dict[str, Tensor] = {}
    for (layer, name), moments in collector.moments.items():
        tensors |= {f"{layer}.{name}.mean": moments.mean, f"{layer}.{name}.squares": moments.squares}
    write_synced(staging / "statistics.safetensors", save(tensors))
    hashes = {file.name: file_hash(file) for file in sorted(staging.iterdir())}
    sync_folder(staging)
    staging.rename(folder / planned.name)
    sync_folder(folder)
    return planned.model_copy(update={"files": hashes})


class _ShardFiles:
    """The sink of a shard: one file a layer and side; a sample's rows follow one another in it, so they are written at
    once.
    """

    def __init__(self, folder: Path, layers: list[int], row_bytes: int) -> None:
        self._row_bytes = row_bytes
        self._files: dict[tuple[int, str], BinaryIO] = {
            (layer, side): (folder / file_name(layer, side)).open("wb", buffering=0)
            for layer in layers
            for side in SIDES
        }

    def __enter__(self) -> _ShardFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for file in self._files.values():
            if kind is None:
                os.fsync(file.fileno())
            file.close()

    def put(self, layer: int, base: Tensor, finetuned: Tensor, rows: Tensor) -> None:
        """See `diffing_mcp.preprocessing.activation_rows.RowSink`."""
        import torch

        breaks = [0, *((rows.diff() != 1).nonzero().squeeze(1) + 1).tolist(), len(rows)]
        places = rows[breaks[:-1]].tolist()
        for side, values in zip(SIDES, (base, finetuned), strict=True):
            content = values.contiguous().view(torch.uint8).numpy().data.cast("B")
            file = self._files[layer, side]
            for place, first, last in zip(places, breaks, breaks[1:], strict=False):
                file.seek(place * self._row_bytes)
                _write_all(file, content[first * self._row_bytes : last * self._row_bytes])


def _write_all(file: BinaryIO, content: memoryview) -> None:
    while content:
        written = file.write(content)
        if not written:
            raise InvalidInput("Activations could not be written: the file takes no more.")
        content = content[written:]
