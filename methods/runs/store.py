"""The run store: every result under one key, in one folder, written whole or not at all.

A run folder holds the files of `diffing_mcp.methods.runs.files`. It is written beside its final place and renamed, so a
half-written run is never visible; two writers of one key do no harm (the first to finish wins, both hold the same
content). Ids are short (`kl-1f3a9c`) and unambiguous prefixes of them work. No pickle. Torch-free, so that the panel
and drill-down questions can read runs.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from diffing_mcp.core.atomic_files import DISK_FULL, discard, new_folder, sync_folder
from diffing_mcp.core.errors import DiffingError, InvalidInput, OutOfRoom, UnknownName
from diffing_mcp.core.remembered import Remembered
from diffing_mcp.core.undivided import working_time
from diffing_mcp.methods.contract import DiffingMethod
from diffing_mcp.methods.directions.vectors import handles, vector_key_parts
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.files import RunManifest, RunRecord, StagedRun
from diffing_mcp.model_pairs.fingerprint import pair_identity

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.specs import PairSpec

__all__ = ["RunKey", "RunManifest", "RunRecord", "RunStore", "StagedRun", "changed_since", "default_store", "run_key"]

_STAGING = ".writing-"


class RunKey(BaseModel):
    """What decides a result, and its hash."""

    method: str
    method_version: int
    pair_name: str
    pair: dict[str, Any]
    params: dict[str, Any]
    key_parts: dict[str, Any]

    @property
    def digest(self) -> str:
        """sha256, in hex, of the canonical JSON of everything but the pair's display name."""
        decisive = self.model_dump(mode="json", exclude={"pair_name"})
        return hashlib.sha256(
            json.dumps(decisive, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        ).hexdigest()


def run_key(
    method: DiffingMethod[Any, Any], spec: PairSpec, params: BaseModel, store: RunStore | None = None
) -> RunKey:
    """The key of running `method` with `params` on `spec`. Corpus methods load their documents (not the models) for the
    content hash.

    A seed is an ordinary parameter, so it is part of the key. Vectors of earlier runs are named by the full keys of
    those runs in `store` (None: the default store).

    Raises:
        UnknownName: a vector is named of a run that is not there.
    """
    parts = method.key_parts(params, spec)
    if any(True for _ in handles(params)):
        parts = {**parts, "vectors": vector_key_parts(params, store or default_store())}
    return RunKey(
        method=method.name,
        method_version=method.version,
        pair_name=spec.name,
        pair=pair_identity(spec),
        params=params.model_dump(mode="json"),
        key_parts=parts,
    )


def changed_since(manifest: RunManifest) -> str | None:
    """One sentence when the models that a run names are not those that it compared any more; None when they are, as far
    as this machine can tell.

    Loads no model: files are compared by content. A run of `BASE::FINETUNED` or of the catalogue is looked up by its
    pair's name.
    """
    from diffing_mcp.model_pairs.resolve import resolve_pair

    weights = manifest.notes.get("weights") or {}
    compared = (
        f" (it compared {weights['base']} with {weights['finetuned']})" if {"base", "finetuned"} <= set(weights) else ""
    )
    try:
        now = pair_identity(resolve_pair(manifest.pair_name))
    except DiffingError:
        return None
    sides = [side for side in ("base", "finetuned") if _other(now[side], manifest.pair.get(side))]
    if not sides:
        return None
    return (
        f"The {' and the '.join(sides)} side of {manifest.pair_name} has changed since this run was made{compared}: "
        "its numbers are those of other weights. Run the method again for the models as they are now."
    )


def _other(now: Any, before: Any) -> bool:
    """Whether two identities of a side are known to differ: parts that nobody can tell now, or that were hashed in
    another way, are no difference.
    """
    if isinstance(now, dict) and isinstance(before, dict):
        return any(_other(value, before[key]) for key, value in now.items() if key in before)
    if now is None or before is None:
        return False
    if (
        isinstance(now, str)
        and isinstance(before, str)
        and {now.partition(":")[0], before.partition(":")[0]} == {"sha256", "sampled-sha256"}
    ):
        return False
    return bool(now != before)


_active: set[str] = set()
"""Names of the staging folders that this process is writing: one folder has many paths, and its name is drawn once."""
_naming = threading.Lock()
"""Held from before such a folder is there until its name is in `_active`."""


class RunStore:
    """The runs under one folder. Any number of processes may read and write it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._manifest = Remembered(_read_manifest)  # a finished run never changes
        folder.mkdir(parents=True, exist_ok=True)
        self._clean()

    def _clean(self) -> None:
        """Remove what dead writers left."""
        for leftover in self.folder.glob(f"{_STAGING}*"):
            host, _, rest = leftover.name.removeprefix(_STAGING).partition("~")
            process = rest.partition("~")[0]
            with _naming:
                written_here = leftover.name in _active
            if written_here or not process.isdigit():
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

        An exception inside leaves nothing behind. When another writer of the same key was faster, its run is kept and
        given.

        Raises:
            OutOfRoom: the disk is full (or a file size limit is reached); nothing is left.
        """
        started = working_time()
        staging: Path | None = None
        try:
            with _naming:
                staging = new_folder(self.folder, f"{_STAGING}{_host()}~{os.getpid()}~")
                _active.add(staging.name)
            run = StagedRun(staging, self)
            yield run
            manifest = run.finish(self._free_id(key), key.digest, key.model_dump(), working_time() - started)
            run.record = self._publish(staging, manifest)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise OutOfRoom(
                "There is not enough disk space to store the run; nothing of it was kept. Free space or delete runs, "
                "then call again."
            ) from error
        finally:
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)
                _active.discard(staging.name)

    def adopt(self, folder: Path) -> RunRecord:
        """Take over a whole run folder from elsewhere, on the same disk; the folder is moved. A run of its key that is
        here already is kept and given.

        Raises:
            InvalidInput: the folder is not a finished run.
        """
        record = self._read(folder)
        if record is None:
            raise InvalidInput(f"{folder} is not a finished run.")
        return self._publish(folder, record.manifest)

    def _publish(self, staging: Path, manifest: RunManifest) -> RunRecord:
        final = self.folder / manifest.key
        for _ in range(2):
            try:
                staging.rename(final)
                sync_folder(self.folder)
                return RunRecord(final, manifest, get_method)
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
                if (existing := self._read(final)) is not None:
                    return existing
                shutil.rmtree(final, ignore_errors=True)  # not a readable run: it must not stand in the way for ever
        raise InvalidInput(
            f"The run could not be stored: its place, runs/{manifest.key} in the data folder, is taken by files that "
            "can be neither read nor removed, such as another user's. Make them readable for all, or remove them."
        )

    def _free_id(self, key: RunKey) -> str:
        others = [name for name in self._digests() if name != key.digest]
        length = 6
        while any(name.startswith(key.digest[:length]) for name in others):
            length += 1
        return f"{key.method}-{key.digest[:length]}"

    def _digests(self) -> Sequence[str]:
        return [entry.name for entry in os.scandir(self.folder) if re.fullmatch(r"[0-9a-f]{64}", entry.name)]

    def _read(self, folder: Path) -> RunRecord | None:
        manifest = self._manifest(folder / "manifest.json")
        return None if manifest is None else RunRecord(folder, manifest, get_method)

    def get(self, identifier: str) -> RunRecord:
        """The run with that id, or with an id or key that starts so, when it is the only one.

        Raises:
            UnknownName: none, or several.
        """
        match = re.fullmatch(r"(?:(?P<method>[a-z0-9_]+)-)?(?P<start>[0-9a-f]{2,64})", identifier.strip())
        found: Sequence[RunRecord] = []
        if match:
            candidates = [self._read(self.folder / name) for name in self._digests() if name.startswith(match["start"])]
            found = [
                record
                for record in candidates
                if record is not None and match["method"] in (None, record.manifest.method)
            ]
            exact = [record for record in found if record.id == identifier.strip()]
            found = exact or found
        if len(found) == 1:
            return found[0]
        if found:
            raise UnknownName(
                f"{identifier!r} is the start of several runs: {', '.join(record.id for record in found[:10])}. Give "
                "more of the id."
            )
        known = [manifest.id for manifest in self.list()]
        close = (
            [name for name in known if name.startswith(identifier)][:5]
            or difflib.get_close_matches(identifier, known, n=3)
            or known[:5]
        )
        raise UnknownName(
            f"There is no run {identifier!r}. "
            + (f"Some runs: {', '.join(close)}." if close else "No run has been stored yet: run a method first.")
        )

    def delete(self, identifier: str) -> str:
        """Remove a run and return its id. It becomes invisible at once, then its files go."""
        record = self.get(identifier)
        try:
            discard(record.folder)
        except FileNotFoundError as error:
            raise UnknownName(f"Run {record.id} was deleted in the meantime.") from error
        return record.id

    def records(self, method: str | None = None, pair: str | None = None) -> Sequence[RunRecord]:
        """All runs (of one method, of one pair's name), newest first."""
        chosen = [
            record
            for name in self._digests()
            if (record := self._read(self.folder / name)) is not None
            and method in (None, record.manifest.method)
            and pair in (None, record.manifest.pair_name)
        ]
        return sorted(chosen, key=lambda record: record.manifest.created, reverse=True)

    def list(self, method: str | None = None, pair: str | None = None) -> Sequence[RunManifest]:
        """Manifests of all runs (of one method, of one pair's name), newest first."""
        return [record.manifest for record in self.records(method, pair)]


def _read_manifest(file: Path) -> RunManifest | None:
    try:
        return RunManifest.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        return None


def default_store() -> RunStore:
    """The store in the data folder of the settings."""
    from diffing_mcp.core.settings import settings

    return RunStore(settings().data_folder / "runs")


def _host() -> str:
    """This machine, and the space in which its process numbers count: containers that share a name of the machine have
    each a process 1.
    """
    name = re.sub(r"[^A-Za-z0-9.-]", "-", platform.node())[:60] or "host"
    space = Path("/proc/self/ns/pid")
    return f"{name}.{space.stat().st_ino}" if space.exists() else name


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
