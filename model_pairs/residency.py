"""What is in memory: full models, their adapters, and who uses them. Counted in bytes; the least recently used goes
first.

A model in use is never evicted. All adapters of one base share its one resident copy. Two full models that do not fit
together make a `sequential` pair, whose sides are loaded in turn.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.core.errors import InvalidInput, NotTheSame, OutOfRoom, UnknownName
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.core.undivided import UndividedLock
from diffing_mcp.model_pairs.adapter_files import OWN_ADAPTER, WEIGHTS, StoredAdapter, adapter_name, read_adapter
from diffing_mcp.model_pairs.answering import AnsweringPair, AnsweringSide, AnsweringSides, SideHere
from diffing_mcp.model_pairs.endpoints import WeightsNeeded, read_endpoint
from diffing_mcp.model_pairs.files import local_folder
from diffing_mcp.model_pairs.pair import LoadedPair
from diffing_mcp.model_pairs.pair_tokenizers import PairTokenizers, choose_tokenizers, tokenizer_files
from diffing_mcp.model_pairs.resident import context_length_of
from diffing_mcp.model_pairs.sides import LoadedSide
from diffing_mcp.model_pairs.specs import SIDES, AdapterFiles, ModelFiles, ModelSource, PairSpec, Side
from diffing_mcp.model_pairs.wanted_models import WantedModel, folder_of, state_of_files, vocabulary_rows, wanted_model

if TYPE_CHECKING:
    import torch

    from diffing_mcp.model_pairs.resident import ResidentModel

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


class ModelPairs:
    """All models of this process. Thread-safe."""

    def __init__(self, memory_limit: int | None = None) -> None:
        """`memory_limit`: bytes that models may take; none: `memory_share` of the device's memory."""
        self._limit = memory_limit
        self._table: dict[WantedModel, _Entry] = {}
        self._tokenizers: dict[tuple[ModelFiles, str], Any] = {}
        self._checked: set[tuple[PairSpec, str, str]] = set()
        self._chosen_tokenizers: dict[tuple[Any, ...], PairTokenizers] = {}
        self._digests: dict[WantedModel, str] = {}
        self._lock = threading.RLock()
        self._loading = UndividedLock()

    @property
    def memory_limit(self) -> int:
        """Bytes that resident models may take."""
        if self._limit is None:
            from diffing_mcp.model_pairs.loading import memory_limit

            self._limit = memory_limit()
        return self._limit

    @contextmanager
    def answering(self, spec: PairSpec, progress: Progress = silent) -> Iterator[AnsweringPair]:
        """The pair for what needs texts alone, for as long as the context lasts: loaded, or with a connection to each
        side that is reachable by URL alone.

        Raises:
            NotTheSame: both sides are one endpoint, and the pair does not say that they are the same; else as `use`.
            InvalidInput: an endpoint's key is not set; else as `use`.
        """
        if not spec.remote:
            with self.use(spec, progress) as pair:
                yield pair
            return
        if spec.base == spec.finetuned and not spec.declared_identical:
            raise NotTheSame("The two sides of this pair are the same model at the same address. Name another.")
        with ExitStack() as stack:
            sides: dict[Side, AnsweringSide] = {
                "base": stack.enter_context(self._asked_alone(spec.name, spec.base, progress)),
                "finetuned": stack.enter_context(self._asked_alone(spec.name, spec.finetuned, progress)),
            }
            yield AnsweringSides(spec, sides)

    @contextmanager
    def _asked_alone(self, name: str, source: ModelSource, progress: Progress) -> Iterator[AnsweringSide]:
        """One side by itself, of a pair whose other side may be elsewhere."""
        if source.remote:
            from diffing_mcp.model_pairs.endpoint_client import EndpointClient
            from diffing_mcp.model_pairs.endpoint_side import EndpointSide

            with closing(EndpointClient(read_endpoint(source.files.id))) as client:
                yield EndpointSide(client, source.files.thinking_switch)
            return
        alone = PairSpec(name=name, base=source, finetuned=source, declared_identical=True)
        with self.use(alone, progress) as pair:
            yield SideHere(pair)

    @contextmanager
    def use(self, spec: PairSpec, progress: Progress = silent) -> Iterator[LoadedPair]:
        """The pair, loaded, for as long as the context lasts.

        Raises:
            WeightsNeeded: a side is reachable by URL alone.
            NotTheSame: sides that do not fit together, an adapter that did not land, or identical sides that are not
                declared so.
            InvalidInput: files that are not there or cannot be read.
            OutOfRoom: no room beside the models in use.
        """
        if spec.remote:
            raise WeightsNeeded
        from diffing_mcp.model_pairs.checks import adapter_remarks, check_configs, check_different, check_vocabularies
        from diffing_mcp.model_pairs.loading import choose_device, compute_dtype, estimated_bytes, read_config

        progress(0, None, "reading the pair")
        sources: dict[Side, ModelSource] = {"base": spec.base, "finetuned": spec.finetuned}
        configs = {side: read_config(source.files, folder_of(source.files)) for side, source in sources.items()}
        dtype, remarks = compute_dtype(spec.base.files, spec.finetuned.files, choose_device())
        wanted = {side: wanted_model(source, dtype) for side, source in sources.items()}
        tokenizers = self._pair_tokenizers(spec, configs)
        base, finetuned = spec.base, spec.finetuned
        checked = (spec, state_of_files(base.files, base.adapter), state_of_files(finetuned.files, finetuned.adapter))
        if checked not in self._checked:
            check_configs(configs["base"], configs["finetuned"])
            check_different(spec)
            with self._lock:
                self._checked.add(checked)
        tokenizer = tokenizers.prompts
        vocabulary = check_vocabularies(configs["base"], configs["finetuned"], tokenizers.known, tokenizers.compared)
        vocabulary = min(vocabulary, *(vocabulary_rows(source, configs[side]) for side, source in sources.items()))

        sequential = False
        if wanted["base"] != wanted["finetuned"]:
            with self._lock:
                others = sum(
                    entry.bytes for key, entry in self._table.items() if entry.users and key not in wanted.values()
                )
            sequential = (
                others + sum(estimated_bytes(source.files, dtype) for source in sources.values()) > self.memory_limit
            )

        sides: dict[Side, LoadedSide] = {}
        for side in SIDES:
            sides[side] = self._side(spec, sources[side], dtype, tokenizer, configs[side], progress)

        def on_base(adapter: AdapterFiles | None) -> LoadedSide:
            return self._side(
                spec, ModelSource(files=spec.base.files, adapter=adapter), dtype, tokenizer, configs["base"], progress
            )

        with ExitStack() as stack:
            config = configs["base"].get_text_config()
            device = None
            context = [context_length_of(each.get_text_config()) for each in configs.values()]
            if not sequential:
                unembeddings = []
                for side in SIDES:
                    resident = stack.enter_context(sides[side].hold())
                    device = device or resident.device
                    unembeddings.append(resident.vocab_size)
                    context.append(resident.context_length)
                    remarks += tuple(remark for remark in resident.remarks if remark not in remarks)
                # Some unembeddings have another number of rows than the configuration says.
                vocabulary = min(unembeddings)
            if device is None:
                import torch

                device = torch.device("cuda:0" if choose_device() == "auto" else choose_device())
            yield LoadedPair(
                spec=spec,
                tokenizer=tokenizer,
                num_layers=config.num_hidden_layers,
                d_model=config.hidden_size,
                vocab_size=vocabulary,
                context_length=min(context),
                device=device,
                sequential=sequential,
                sides=sides,
                on_base=on_base,
                new_tokens=tokenizers.new_tokens,
                finetuned_tokenizer=tokenizers.answers,
                remarks=(*remarks, *tokenizers.remarks, *adapter_remarks(spec.base), *adapter_remarks(spec.finetuned)),
            )

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
            found = [
                key
                for key, entry in self._table.items()
                if name in (key.label, entry.resident.label) or name in entry.pairs
            ]
            if not found:
                labels = ", ".join(status.label for status in self.status()) or "nothing"
                raise UnknownName(f"Nothing named {name!r} is in memory. In memory: {labels}.")
            idle = [key for key in found if not self._table[key].users]
            if not idle:
                raise InvalidInput(f"{name!r} is in use; wait until its work is done, or cancel that.")
            freed = sum(self._table[key].bytes for key in idle)
            for key in idle:
                self._drop(key)
            return freed

    def _pair_tokenizers(self, spec: PairSpec, configs: Mapping[Side, Any]) -> PairTokenizers:
        places = tokenizer_files(spec.base), tokenizer_files(spec.finetuned)
        of_adapter = spec.finetuned.adapter is not None
        rows = [vocabulary_rows(spec.base, configs["base"]), vocabulary_rows(spec.finetuned, configs["finetuned"])]
        key = (*places, *map(state_of_files, places), *rows, of_adapter)
        with self._lock:
            found = self._chosen_tokenizers.get(key)
        if found is None:
            found = choose_tokenizers(
                self._tokenizer(places[0], rows[0]), self._tokenizer(places[1], rows[1]), rows, of_adapter
            )
            with self._lock:
                self._chosen_tokenizers[key] = found
        return found

    def _tokenizer(self, files: ModelFiles, rows: int) -> Any | None:
        from diffing_mcp.model_pairs.loading import read_tokenizer

        key = files, state_of_files(files)
        with self._lock:
            if key not in self._tokenizers:
                self._tokenizers[key] = read_tokenizer(files, rows)
            return self._tokenizers[key]

    def _side(
        self, spec: PairSpec, source: ModelSource, dtype: torch.dtype, tokenizer: Any, config: Any, progress: Progress
    ) -> LoadedSide:
        """How to hold one side, with its adapter's name and steering vector."""
        wanted = wanted_model(source, dtype)
        stored = None
        if source.adapter is not None:
            stored = read_adapter(local_folder(source.adapter.id, source.adapter.revision, source.adapter.subfolder))
        shared = stored if wanted.adapter is None else None
        name = (
            adapter_name(shared.folder)
            if shared is not None
            else OWN_ADAPTER
            if wanted.adapter is not None and not wanted.merge
            else None
        )
        text = config.get_text_config()
        from diffing_mcp.model_pairs.checks import steering_of

        steering = steering_of(source, text.num_hidden_layers, text.hidden_size)

        @contextmanager
        def hold() -> Iterator[ResidentModel]:
            with self._held(wanted, tokenizer, stored, name if shared is not None else None, progress) as entry:
                entry.pairs.add(spec.name)
                yield entry.resident

        def in_memory() -> bool:
            with self._lock:
                return wanted in self._table

        def digest() -> str:
            from diffing_mcp.model_pairs.weight_digest import side_digest

            with self._lock:
                known = self._digests.get(wanted)
            if known is None:
                with hold() as resident:
                    known = resident.digest
            return side_digest(
                known,
                None if stored is None else adapter_name(stored.folder),
                [(each.layer, each.strength, each.vector) for each in steering],
            )

        return LoadedSide(hold, name, steering, in_memory=in_memory, digest=digest)

    @contextmanager
    def _held(
        self, wanted: WantedModel, tokenizer: Any, stored: StoredAdapter | None, name: str | None, progress: Progress
    ) -> Iterator[_Entry]:
        """A resident model that stays in memory inside the context, with an adapter attached by its name, or without
        one or with its own (None).
        """
        entry = self._acquire(wanted, tokenizer, stored if name is None else None, progress)
        try:
            if name is None or stored is None:
                yield entry
                return
            self._attach(entry, name, stored)
            try:
                yield entry
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
