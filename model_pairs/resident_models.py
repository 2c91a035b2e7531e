"""Full models in memory, their adapters, and who uses them. Counted in bytes; the least recently used goes first.

A model in use is never evicted. All adapters of one base share its one resident copy.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.core.errors import InvalidInput, NotTheSame, OutOfRoom, UnknownName
from diffing_mcp.core.progress import Progress
from diffing_mcp.core.undivided import UndividedLock
from diffing_mcp.model_pairs.adapter_files import WEIGHTS, StoredAdapter
from diffing_mcp.model_pairs.wanted_models import WantedModel

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.resident import ResidentModel
    from diffing_mcp.model_pairs.specs import PairSpec

log = logging.getLogger(__name__)


class ModelStatus(BaseModel):
    """One model in memory."""

    model_config = ConfigDict(frozen=True)

    label: str
    bytes: int = Field(description="Parameters and buffers, adapters included.")
    adapters: int
    in_use: bool
    last_used: float = Field(description="Seconds since the epoch.")


@dataclass
class _Entry:
    resident: ResidentModel
    bytes: int
    users: int = 0
    last_used: float = field(default_factory=time.time)
    adapter_users: dict[str, int] = field(default_factory=dict)
    adapter_used: dict[str, float] = field(default_factory=dict)
    pairs: set[str] = field(default_factory=set)


class ResidentModels:
    """The models in memory. Thread-safe.

    Args:
        memory_limit: bytes that they may take; None: `memory_share` of the device's memory.
    """

    def __init__(self, memory_limit: int | None = None) -> None:
        self._limit = memory_limit
        self._table: dict[WantedModel, _Entry] = {}
        self._digests: dict[WantedModel, str] = {}
        self._lock = threading.RLock()
        self._loading = UndividedLock()

    @property
    def memory_limit(self) -> int:
        """Bytes that they may take together."""
        if self._limit is None:
            from diffing_mcp.model_pairs.loading import memory_limit

            self._limit = memory_limit()
        return self._limit

    def __contains__(self, wanted: WantedModel) -> bool:
        with self._lock:
            return wanted in self._table

    def digest(self, wanted: WantedModel) -> str | None:
        """Content of a model's weights; None while it has never been loaded."""
        with self._lock:
            return self._digests.get(wanted)

    def bytes_in_use(self, apart_from: Collection[WantedModel]) -> int:
        """Bytes of the models that somebody uses now."""
        with self._lock:
            return sum(entry.bytes for key, entry in self._table.items() if entry.users and key not in apart_from)

    @contextmanager
    def held(
        self,
        wanted: WantedModel,
        tokenizer: Any,
        stored: StoredAdapter | None,
        name: str | None,
        pair: str,
        progress: Progress,
    ) -> Iterator[ResidentModel]:
        """A resident model that stays in memory inside the context, with an adapter attached by its name, or without
        one or with its own (None), for the pair of that name.

        Raises:
            NotTheSame: files that changed meanwhile, or an adapter that was made for another model.
            OutOfRoom: no room beside the models in use.
        """
        entry = self._acquire(wanted, tokenizer, stored if name is None else None, progress)
        try:
            entry.pairs.add(pair)
            if name is None or stored is None:
                yield entry.resident
                return
            self._attach(entry, name, stored)
            try:
                yield entry.resident
            finally:
                with self._lock:
                    entry.adapter_users[name] -= 1
                    entry.adapter_used[name] = time.time()
        finally:
            with self._lock:
                entry.users -= 1
                entry.last_used = time.time()
                if entry.resident.spoiled and self._table.get(wanted) is entry:
                    del self._table[wanted]

    def status(self) -> list[ModelStatus]:
        """What is in memory, most recently used first."""
        with self._lock:
            entries = sorted(self._table.items(), key=lambda item: -item[1].last_used)
            return [
                ModelStatus(
                    label=key.label,
                    bytes=entry.bytes,
                    adapters=len(entry.resident.adapters),
                    in_use=entry.users > 0,
                    last_used=entry.last_used,
                )
                for key, entry in entries
            ]

    def unload(self, name: str) -> int:
        """Release the models with this label, or those that the pair of this name used; returns the bytes freed.

        Raises:
            UnknownName: nothing of that name is in memory.
            InvalidInput: all of it is in use.
        """
        with self._lock:
            return self._release(
                name,
                [
                    key
                    for key, entry in self._table.items()
                    if name in (key.label, entry.resident.label) or name in entry.pairs
                ],
            )

    def unload_pair(self, spec: PairSpec) -> int:
        """Release the models that both sides of a pair are made of, whatever pairs were called that used them; returns
        the bytes freed.

        Raises: as `unload`.
        """
        sides = (spec.base, spec.finetuned)
        shared = {(side.files, None, False) for side in sides}
        own = {(side.files, side.adapter, side.merge) for side in sides}
        with self._lock:
            return self._release(
                spec.name, [key for key in self._table if (key.files, key.adapter, key.merge) in shared | own]
            )

    def _release(self, name: str, found: Sequence[WantedModel]) -> int:
        """Release those of these models that nobody uses; returns the bytes freed. Holds the table's lock."""
        if not found:
            labels = ", ".join(status.label for status in self.status()) or "nothing"
            raise UnknownName(f"Nothing named {name!r} is in memory. In memory: {labels}.")
        idle = [key for key in found if not self._table[key].users]
        if not idle:
            raise InvalidInput(f"{name!r} is in use; wait until its work is done, or cancel that.")
        return self._drop_all(idle)

    def unload_idle(self) -> int:
        """Release all models that nobody uses now; returns the bytes freed."""
        with self._lock:
            return self._drop_all([key for key, entry in self._table.items() if not entry.users])

    def _drop_all(self, keys: Sequence[WantedModel]) -> int:
        """Release these models; returns the bytes freed. Holds the table's lock."""
        freed = sum(self._table[key].bytes for key in keys)
        for key in keys:
            self._drop(key)
        return freed

    def _acquire(self, wanted: WantedModel, tokenizer: Any, stored: StoredAdapter | None, progress: Progress) -> _Entry:
        with self._lock:
            if entry := self._table.get(wanted):
                entry.users += 1
                return entry
        from diffing_mcp.model_pairs.loading import estimated_bytes, load_model

        with self._loading:  # one load at a time; models that are resident stay usable meanwhile
            with self._lock:
                if entry := self._table.get(wanted):
                    entry.users += 1
                    return entry
                for outdated in [
                    key
                    for key, entry in self._table.items()
                    if not entry.users and replace(key, state=wanted.state) == wanted
                ]:
                    self._drop(outdated)
                self._make_room(estimated_bytes(wanted.files, wanted.dtype))
            progress(0, None, "loading a model")
            resident = load_model(wanted.files, wanted.label, tokenizer, wanted.dtype, stored, wanted.merge)
            if wanted.now() != wanted:
                raise NotTheSame(
                    f"The files of {wanted.label} were written while this pair was in use. Call again: they are read "
                    "anew."
                )
            entry = _Entry(resident, resident.bytes(), users=1)
            with self._lock:
                self._table[wanted] = entry
                self._digests[wanted] = resident.digest
            return entry

    def _attach(self, entry: _Entry, name: str, stored: StoredAdapter) -> None:
        """Attach the adapter if it is not there yet, and count one more user of it."""
        from diffing_mcp.model_pairs.adapters import attach

        with self._lock:
            if name in entry.resident.adapters:
                entry.adapter_users[name] = entry.adapter_users.get(name, 0) + 1
                return
        # The model's lock first, then the table's: whoever runs a pass holds the former and may take the latter.
        with entry.resident.lock:
            with self._lock:
                entry.adapter_users[name] = entry.adapter_users.get(name, 0) + 1
                if name not in entry.resident.adapters:
                    try:
                        self._make_room((stored.folder / WEIGHTS).stat().st_size)
                    except OutOfRoom:
                        entry.adapter_users[name] -= 1
                        raise
            try:
                if attach(entry.resident, stored).name != name:
                    raise NotTheSame(
                        "The files of the adapter were written while this pair was in use. Call again: they are read "
                        "anew."
                    )
                size = entry.resident.bytes()
            except Exception:
                with self._lock:
                    entry.adapter_users[name] -= 1
                raise
            with self._lock:
                entry.bytes = size

    def _make_room(self, needed: int) -> None:
        """Evict what was used longest ago until `needed` bytes fit. Raises OutOfRoom when only things in use are left.
        Holds the table's lock.
        """
        from diffing_mcp.model_pairs.adapters import detach

        busy: set[WantedModel] = set()
        while True:
            total = sum(entry.bytes for entry in self._table.values())
            if total + needed <= self.memory_limit:
                return
            candidates: list[tuple[float, WantedModel, str | None]] = [
                (entry.last_used, key, None) for key, entry in self._table.items() if not entry.users
            ]
            for key, entry in self._table.items():
                if entry.users and key not in busy:
                    idle = [name for name in entry.resident.adapters if not entry.adapter_users.get(name)]
                    candidates.extend((entry.adapter_used.get(name, 0.0), key, name) for name in idle)
            if not candidates:
                in_use = (
                    ", ".join(f"{key.label} ({entry.bytes >> 20} MB)" for key, entry in self._table.items())
                    or "nothing"
                )
                log.info("out of room: %d bytes needed, limit %d, in use: %s", needed, self.memory_limit, in_use)
                raise OutOfRoom(
                    f"The model needs {needed >> 20} MB; models may take {self.memory_limit >> 20} MB together and "
                    f"those in use take {total >> 20} MB. Wait until running work is done, choose a smaller model, or "
                    "raise memory_share."
                )
            _, key, name = min(candidates, key=lambda candidate: candidate[0])
            resident = self._table[key].resident
            if name is None:
                self._drop(key)
            elif resident.lock.acquire(blocking=False):
                try:
                    detach(resident, name)
                    self._table[key].bytes = resident.bytes()
                finally:
                    resident.lock.release()
            else:  # a pass runs on it; waiting for that with the table locked could wait for ever
                busy.add(key)

    def _drop(self, key: WantedModel) -> None:
        """Release one model's memory. Holds the table's lock."""
        entry = self._table.pop(key)
        log.info("released %s (%d MB)", key.label, entry.bytes >> 20)
        entry.resident.release()
        del entry
        gc.collect()
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()
