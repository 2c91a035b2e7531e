"""The run store: every result under one key, in one folder, written whole or not at all.

A run folder holds `manifest.json`, `result.json`, `arrays.safetensors` and `tables/<name>.parquet`. It is written beside its final place and
renamed, so a half-written run is never visible; two writers of one key do no harm (the first to finish wins, both hold the same content). Ids
are short (`kl-1f3a9c`) and unambiguous prefixes of them work. No pickle. Torch-free, so that the panel and drill-down questions can read runs.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from methods.contract import DiffingMethod, MethodResult
from methods.registry import get_method
from organisms.errors import DiffingError, InvalidInput, OutOfRoom, UnknownName

if TYPE_CHECKING:
    import pyarrow

    from model_pairs.specs import PairSpec

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_STAGING = ".writing-"
_LIBRARIES = ("torch", "transformers", "peft", "nnterp", "nnsight", "numpy", "diffing-mcp")


class RunManifest(BaseModel):
    """Everything that identifies a run and what it cost. Names real models: never show it to a blinded agent as it stands."""

    id: str
    key: str
    method: str
    method_version: int
    pair_name: str
    pair: dict[str, Any] = Field(description="PairSpec.identity()")
    params: dict[str, Any]
    key_parts: dict[str, Any] = Field(default_factory=dict, description="For corpus methods: {'corpus': {'id', 'content_hash'}}.")
    created: datetime
    seconds: float = Field(description="Seconds of the work, including the whole of a shared pass.")
    notes: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    arrays: dict[str, list[int]] = Field(default_factory=dict, description="Name -> shape.")
    tables: dict[str, int] = Field(default_factory=dict, description="Name -> number of rows.")
    bytes: int = 0


class RunKey(BaseModel):
    """What decides a result, and its hash."""

    method: str
    method_version: int
    pair_name: str
    pair: dict[str, Any]
    params: dict[str, Any]
    key_parts: dict[str, Any]

    @cached_property
    def digest(self) -> str:
        """sha256, in hex, of the canonical JSON of everything but the pair's display name."""
        decisive = self.model_dump(mode="json", exclude={"pair_name"})
        return hashlib.sha256(json.dumps(decisive, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


def run_key(method: DiffingMethod[Any, Any], spec: PairSpec, params: BaseModel) -> RunKey:
    """The key of running `method` with `params` on `spec`. Corpus methods load their documents (not the models) for the content hash.

    A seed is an ordinary parameter, so it is part of the key.
    """
    return RunKey(
        method=method.name,
        method_version=method.version,
        pair_name=spec.name,
        pair=spec.identity(),
        params=params.model_dump(mode="json"),
        key_parts=method.key_parts(params),
    )


class RunRecord:
    """A finished run, read lazily."""

    def __init__(self, folder: Path, manifest: RunManifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @property
    def id(self) -> str:
        """Short id, such as `kl-1f3a9c`."""
        return self.manifest.id

    def result_json(self) -> dict[str, Any]:
        """The stored result as plain JSON values."""
        return dict(json.loads((self.folder / "result.json").read_text(encoding="utf-8")))

    def result(self) -> MethodResult:
        """The stored result, validated by the method's `Result`.

        Raises:
            InvalidInput: the run was written by another version of the method, whose result had other fields.
        """
        method = get_method(self.manifest.method)
        try:
            return method.Result.model_validate(self.result_json())
        except ValidationError as error:
            raise InvalidInput(
                f"Run {self.id} was written by version {self.manifest.method_version} of {method.name}; this is version {method.version}. "
                "Run the method again."
            ) from error

    def array(self, name: str) -> np.ndarray:
        """One stored array, read without the others."""
        from safetensors import safe_open

        if name not in self.manifest.arrays:
            raise UnknownName(f"Run {self.id} has no array {name!r}; arrays: {', '.join(self.manifest.arrays) or 'none'}.")
        with safe_open(self.folder / "arrays.safetensors", framework="numpy") as file:
            return np.asarray(file.get_tensor(name))

    def arrays(self) -> dict[str, np.ndarray]:
        """All stored arrays by name."""
        return {name: self.array(name) for name in self.manifest.arrays}

    def table(self, name: str, columns: Sequence[str] | None = None) -> pyarrow.Table:
        """A stored table (some columns of it)."""
        from pyarrow import parquet

        if name not in self.manifest.tables:
            raise UnknownName(f"Run {self.id} has no table {name!r}; tables: {', '.join(self.manifest.tables) or 'none'}.")
        # A ParquetFile, because read_table would take the folder structure for partition columns.
        return parquet.ParquetFile(self.folder / "tables" / f"{name}.parquet").read(columns=columns)


class StagedRun:
    """The `RunWriter` of one run that is being written. Set `result` before the context ends; `record` is there afterwards."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._arrays: dict[str, np.ndarray] = {}
        self._tables: dict[str, int] = {}
        self._notes: dict[str, Any] = {}
        self.result: MethodResult | None = None
        self.record: RunRecord | None = None
        self.seconds: float | None = None
        """Set it when the work was not done within the context (a shared pass)."""

    def add_array(self, name: str, values: Any) -> None:
        """See `methods.contract.RunWriter`."""
        self._arrays[_checked(name)] = np.ascontiguousarray(_numpy(values))

    def add_table(self, name: str, columns: Mapping[str, Sequence[Any] | Any]) -> None:
        """See `methods.contract.RunWriter`."""
        import pyarrow as pa
        from pyarrow import parquet

        table = pa.table({column: _column(values) for column, values in columns.items()})
        sink = pa.BufferOutputStream()
        parquet.write_table(table, sink, compression="zstd")
        (self._folder / "tables").mkdir(exist_ok=True)
        _write(self._folder / "tables" / f"{_checked(name)}.parquet", sink.getvalue())
        self._tables[name] = table.num_rows

    def note(self, name: str, value: Any) -> None:
        """See `methods.contract.RunWriter`."""
        self._notes[name] = value

    def _finish(self, identifier: str, key: RunKey, seconds: float) -> RunManifest:
        from safetensors.numpy import save

        if self.result is None:
            raise InvalidInput(f"The method {key.method} ended without a result.")
        _write(self._folder / "arrays.safetensors", save(self._arrays))
        _write(self._folder / "result.json", self.result.model_dump_json().encode())
        manifest = RunManifest(
            id=identifier,
            key=key.digest,
            created=datetime.now(UTC),
            seconds=round(self.seconds if self.seconds is not None else seconds, 3),
            notes=self._notes,
            versions=library_versions(),
            arrays={name: list(array.shape) for name, array in self._arrays.items()},
            tables=self._tables,
            bytes=sum(file.stat().st_size for file in self._folder.rglob("*") if file.is_file()),
            **key.model_dump(),
        )
        _write(self._folder / "manifest.json", manifest.model_dump_json(indent=1).encode())
        return manifest


_active: set[Path] = set()
"""Staging folders that this process is writing."""


class RunStore:
    """The runs under one folder. Any number of processes may read and write it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._clean()

    def _clean(self) -> None:
        """Remove what dead writers left."""
        for leftover in self.folder.glob(f"{_STAGING}*"):
            host, _, rest = leftover.name.removeprefix(_STAGING).partition("~")
            process = rest.partition("~")[0]
            if leftover in _active or not process.isdigit():
                continue
            with contextlib.suppress(OSError):
                ended = host == _host() and (int(process) == os.getpid() or not _alive(int(process)))
                if ended or time.time() - leftover.stat().st_mtime > 7 * 86_400:
                    shutil.rmtree(leftover, ignore_errors=True)

    def lookup(self, key: RunKey) -> RunRecord | None:
        """The finished run of that key, or None."""
        return self._read(self.folder / key.digest)

    @contextlib.contextmanager
    def writer(self, key: RunKey) -> Iterator[StagedRun]:
        """Write a run: `with store.writer(key) as run: run.add_array(...); run.result = ...`, then `run.record`.

        An exception inside leaves nothing behind. When another writer of the same key was faster, its run is kept and given.

        Raises:
            OutOfRoom: the disk is full (or a file size limit is reached); nothing is left.
        """
        started = time.monotonic()
        staging: Path | None = None
        try:
            staging = Path(tempfile.mkdtemp(prefix=f"{_STAGING}{_host()}~{os.getpid()}~", dir=self.folder))
            _active.add(staging)
            run = StagedRun(staging)
            yield run
            manifest = run._finish(self._free_id(key), key, time.monotonic() - started)
            run.record = self._publish(staging, manifest)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                raise
            raise OutOfRoom(
                "There is not enough disk space to store the run; nothing of it was kept. Free space or delete runs, then call again."
            ) from error
        finally:
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)
                _active.discard(staging)

    def _publish(self, staging: Path, manifest: RunManifest) -> RunRecord:
        final = self.folder / manifest.key
        for _ in range(2):
            try:
                staging.rename(final)
                _sync_folder(self.folder)
                return RunRecord(final, manifest)
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
                if (existing := self._read(final)) is not None:
                    return existing
                shutil.rmtree(final, ignore_errors=True)  # not a readable run: it must not stand in the way for ever
        raise InvalidInput("The run could not be stored: its place is taken by files that cannot be removed.")

    def _free_id(self, key: RunKey) -> str:
        others = [name for name in self._digests() if name != key.digest]
        length = 6
        while any(name.startswith(key.digest[:length]) for name in others):
            length += 1
        return f"{key.method}-{key.digest[:length]}"

    def _digests(self) -> Sequence[str]:
        return [entry.name for entry in os.scandir(self.folder) if re.fullmatch(r"[0-9a-f]{64}", entry.name)]

    def _read(self, folder: Path) -> RunRecord | None:
        try:
            return RunRecord(folder, RunManifest.model_validate_json((folder / "manifest.json").read_text(encoding="utf-8")))
        except (OSError, ValidationError, UnicodeDecodeError):
            return None

    def get(self, identifier: str) -> RunRecord:
        """The run with that id, or with an id or key that starts so, when it is the only one.

        Raises:
            UnknownName: none, or several.
        """
        match = re.fullmatch(r"(?:(?P<method>[a-z0-9_]+)-)?(?P<start>[0-9a-f]{2,64})", identifier.strip())
        found: Sequence[RunRecord] = []
        if match:
            candidates = [self._read(self.folder / name) for name in self._digests() if name.startswith(match["start"])]
            found = [record for record in candidates if record is not None and match["method"] in (None, record.manifest.method)]
            exact = [record for record in found if record.id == identifier.strip()]
            found = exact or found
        if len(found) == 1:
            return found[0]
        if found:
            raise UnknownName(f"{identifier!r} is the start of several runs: {', '.join(record.id for record in found[:10])}. Give more of the id.")
        known = [manifest.id for manifest in self.list()]
        close = difflib.get_close_matches(identifier, known, n=3) or known[:5]
        raise UnknownName(
            f"There is no run {identifier!r}. " + (f"Some runs: {', '.join(close)}." if close else "No run has been stored yet: call a method first.")
        )

    def delete(self, identifier: str) -> str:
        """Remove a run and return its id. It becomes invisible at once, then its files go."""
        record = self.get(identifier)
        doomed = Path(tempfile.mkdtemp(prefix=f"{_STAGING}{_host()}~{os.getpid()}~", dir=self.folder))
        try:
            record.folder.rename(doomed / "run")
        except FileNotFoundError as error:
            raise UnknownName(f"Run {record.id} was deleted in the meantime.") from error
        finally:
            shutil.rmtree(doomed, ignore_errors=True)
        return record.id

    def list(self, method: str | None = None, pair: str | None = None) -> Sequence[RunManifest]:
        """Manifests of all runs (of one method, of one pair's name), newest first."""
        records = (self._read(self.folder / name) for name in self._digests())
        manifests = [record.manifest for record in records if record is not None]
        chosen = [manifest for manifest in manifests if method in (None, manifest.method) and pair in (None, manifest.pair_name)]
        return sorted(chosen, key=lambda manifest: manifest.created, reverse=True)


def default_store() -> RunStore:
    """The store in the data folder of the settings."""
    from organisms.settings import settings

    return RunStore(settings().data_folder / "runs")


def library_versions() -> dict[str, str]:
    """Versions of what decides numbers, of Python, and of this project's code."""
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[library] = importlib.metadata.version(library)
    return versions


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise DiffingError(f"{name!r} cannot name an array or a table: letters, digits, `_`, `.` and `-` only.")
    return name


def _numpy(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):  # a torch tensor; numpy has no bfloat16
        tensor = values.detach().cpu()
        return np.asarray((tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy())
    return np.asarray(values)


def _column(values: Any) -> Any:
    return _numpy(values) if hasattr(values, "detach") else values


def _write(path: Path, content: Any) -> None:
    """Write bytes and wait until they are on the disk, so that the rename cannot become visible before them."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system lets a folder be synced
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "-", platform.node())[:60] or "host"


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
