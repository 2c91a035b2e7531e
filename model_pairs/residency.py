"""What is in memory: full models, their adapters, and who uses them. Counted in bytes; the least recently used goes first.

A model in use is never evicted. All adapters of one base share its one resident copy. Two full models that do not fit together make a
`sequential` pair, whose sides are loaded in turn.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from model_pairs.files import local_folder
from model_pairs.layers import resolve_layer
from model_pairs.pair import LoadedPair, LoadedSide
from model_pairs.specs import SIDES, AdapterFiles, ModelFiles, ModelSource, PairSpec, Side
from organisms.errors import InvalidInput, NotTheSame, OutOfRoom, UnknownName
from organisms.progress import Progress, silent

if TYPE_CHECKING:
    import torch

    from model_pairs.interventions import Intervention
    from model_pairs.loading import ResidentModel

log = logging.getLogger(__name__)


class ModelStatus(BaseModel):
    """One model in memory."""

    model_config = ConfigDict(frozen=True)

    label: str
    bytes: int = Field(description="Parameters and buffers, adapters included.")
    adapters: int
    in_use: bool
    last_used: float = Field(description="Seconds since the epoch.")


@dataclass(frozen=True)
class _Wanted:
    """A full model as the table knows it: its files, an adapter merged into it, and the dtype that its pair runs in."""

    files: ModelFiles
    merge: AdapterFiles | None
    dtype: torch.dtype

    @property
    def label(self) -> str:
        return self.files.id + (f" with {self.merge.id} merged" if self.merge else "")


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
        self._table: dict[_Wanted, _Entry] = {}
        self._tokenizers: dict[ModelFiles, Any] = {}
        self._checked: set[PairSpec] = set()
        self._lock = threading.RLock()
        self._loading = threading.RLock()

    @property
    def memory_limit(self) -> int:
        """Bytes that resident models may take."""
        if self._limit is None:
            from model_pairs.loading import memory_limit

            self._limit = memory_limit()
        return self._limit

    @contextmanager
    def use(self, spec: PairSpec, progress: Progress = silent) -> Iterator[LoadedPair]:
        """The pair, loaded, for as long as the context lasts.

        Raises:
            NotTheSame: sides that do not fit together, an adapter that did not land, or identical sides that are not declared so.
            InvalidInput: files that are not there or cannot be read.
            OutOfRoom: no room beside the models in use.
        """
        from model_pairs.checks import check_configs, check_different, check_tokenizers, check_vocabularies
        from model_pairs.loading import choose_device, compute_dtype, context_length_of, estimated_bytes, read_config

        progress(0, None, "reading the pair")
        sources: dict[Side, ModelSource] = {"base": spec.base, "finetuned": spec.finetuned}
        configs = {side: read_config(source.files, _folder(source.files)) for side, source in sources.items()}
        rows = {side: int(config.get_text_config().vocab_size) for side, config in configs.items()}
        tokenizers = {side: self._tokenizer(source.files, rows[side]) for side, source in sources.items()}
        dtype, remarks = compute_dtype(spec.base.files, spec.finetuned.files, choose_device())
        wanted = {side: _Wanted(source.files, source.adapter if source.merge else None, dtype) for side, source in sources.items()}
        two_tokenizers = tokenizers["base"] is not None and tokenizers["finetuned"] is not None and tokenizers["base"] is not tokenizers["finetuned"]
        if spec not in self._checked:
            check_configs(configs["base"], configs["finetuned"])
            if two_tokenizers:
                check_tokenizers(tokenizers["base"], tokenizers["finetuned"])
            check_different(spec)
            with self._lock:
                self._checked.add(spec)
        tokenizer, new_tokens = _shared_tokenizer(tokenizers, rows["finetuned"])
        known = 1 + max(index for index in (tokenizers["base"] or tokenizer).get_vocab().values() if index < rows["base"])
        vocabulary = check_vocabularies(configs["base"], configs["finetuned"], known, two_tokenizers)

        sequential = False
        if wanted["base"] != wanted["finetuned"]:
            with self._lock:
                others = sum(entry.bytes for key, entry in self._table.items() if entry.users and key not in wanted.values())
            sequential = others + sum(estimated_bytes(source.files, dtype) for source in sources.values()) > self.memory_limit

        sides: dict[Side, LoadedSide] = {}
        for side in SIDES:
            sides[side] = self._side(spec, sources[side], wanted[side], tokenizer, configs[side], progress)

        def on_base(adapter: AdapterFiles | None) -> LoadedSide:
            return self._side(
                spec, ModelSource(files=spec.base.files, adapter=adapter), _Wanted(spec.base.files, None, dtype), tokenizer, configs["base"], progress
            )

        with ExitStack() as stack:
            config = configs["base"].get_text_config()
            device = None
            if not sequential:
                unembeddings = []
                for side in SIDES:
                    resident = stack.enter_context(sides[side].hold())
                    device = device or resident.device
                    unembeddings.append(resident.vocab_size)
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
                context_length=min(context_length_of(each.get_text_config()) for each in configs.values()),
                device=device,
                sequential=sequential,
                sides=sides,
                on_base=on_base,
                new_tokens=new_tokens,
                finetuned_tokenizer=tokenizers["finetuned"] if new_tokens else None,
                remarks=remarks,
            )

    def status(self) -> list[ModelStatus]:
        """What is in memory, most recently used first."""
        with self._lock:
            entries = sorted(self._table.items(), key=lambda item: -item[1].last_used)
            return [
                ModelStatus(
                    label=key.label, bytes=entry.bytes, adapters=len(entry.resident.adapters), in_use=entry.users > 0, last_used=entry.last_used
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
            found = [key for key, entry in self._table.items() if name in (key.label, entry.resident.label) or name in entry.pairs]
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

    def _tokenizer(self, files: ModelFiles, rows: int) -> Any | None:
        from model_pairs.loading import read_tokenizer

        with self._lock:
            if files not in self._tokenizers:
                self._tokenizers[files] = read_tokenizer(files, rows)
            return self._tokenizers[files]

    def _side(self, spec: PairSpec, source: ModelSource, wanted: _Wanted, tokenizer: Any, config: Any, progress: Progress) -> LoadedSide:
        """How to hold one side, with its adapter's name and steering vector."""
        from model_pairs.adapters import adapter_name

        adapter, folder = None, None
        if source.adapter is not None and not source.merge:
            folder = local_folder(source.adapter.id, source.adapter.revision, source.adapter.subfolder)
            adapter = adapter_name(folder)
        text = config.get_text_config()
        steering = _steering(source, text.num_hidden_layers, text.hidden_size)

        @contextmanager
        def hold() -> Iterator[ResidentModel]:
            with self._held(wanted, tokenizer, adapter, folder, progress) as entry:
                entry.pairs.add(spec.name)
                yield entry.resident

        def in_memory() -> bool:
            with self._lock:
                return wanted in self._table

        return LoadedSide(hold, adapter, steering, in_memory=in_memory)

    @contextmanager
    def _held(self, wanted: _Wanted, tokenizer: Any, adapter: str | None, folder: Path | None, progress: Progress) -> Iterator[_Entry]:
        """A resident model that stays in memory inside the context, with its adapter attached."""
        entry = self._acquire(wanted, tokenizer, progress)
        try:
            if adapter is not None and folder is not None:
                self._attach(entry, adapter, folder)
            try:
                yield entry
            finally:
                if adapter is not None:
                    with self._lock:
                        entry.adapter_users[adapter] -= 1
                        entry.adapter_used[adapter] = time.time()
        finally:
            with self._lock:
                entry.users -= 1
                entry.last_used = time.time()

    def _acquire(self, wanted: _Wanted, tokenizer: Any, progress: Progress) -> _Entry:
        with self._lock:
            if entry := self._table.get(wanted):
                entry.users += 1
                return entry
        from model_pairs.loading import estimated_bytes, load_model

        with self._loading:  # one load at a time; models that are resident stay usable meanwhile
            with self._lock:
                if entry := self._table.get(wanted):
                    entry.users += 1
                    return entry
                self._make_room(estimated_bytes(wanted.files, wanted.dtype))
            progress(0, None, "loading a model")
            resident = load_model(wanted.files, wanted.label, tokenizer, wanted.merge, wanted.dtype)
            entry = _Entry(resident, resident.bytes(), users=1)
            with self._lock:
                self._table[wanted] = entry
            return entry

    def _attach(self, entry: _Entry, adapter: str, folder: Path) -> None:
        """Attach the adapter if it is not there yet, and count one more user of it."""
        from model_pairs.adapters import attach

        with self._lock:
            if adapter in entry.resident.adapters:
                entry.adapter_users[adapter] = entry.adapter_users.get(adapter, 0) + 1
                return
        # The model's lock first, then the table's: whoever runs a pass holds the former and may take the latter.
        with entry.resident.lock:
            with self._lock:
                entry.adapter_users[adapter] = entry.adapter_users.get(adapter, 0) + 1
                if adapter not in entry.resident.adapters:
                    try:
                        self._make_room((folder / "adapter_model.safetensors").stat().st_size)
                    except OutOfRoom:
                        entry.adapter_users[adapter] -= 1
                        raise
            try:
                attach(entry.resident, folder)
                size = entry.resident.bytes()
            except Exception:
                with self._lock:
                    entry.adapter_users[adapter] -= 1
                raise
            with self._lock:
                entry.bytes = size

    def _make_room(self, needed: int) -> None:
        """Evict what was used longest ago until `needed` bytes fit. Raises OutOfRoom when only things in use are left. Holds the table's lock."""
        from model_pairs.adapters import detach

        busy: set[_Wanted] = set()
        while True:
            total = sum(entry.bytes for entry in self._table.values())
            if total + needed <= self.memory_limit:
                return
            candidates: list[tuple[float, _Wanted, str | None]] = [
                (entry.last_used, key, None) for key, entry in self._table.items() if not entry.users
            ]
            for key, entry in self._table.items():
                if entry.users and key not in busy:
                    idle = [name for name in entry.resident.adapters if not entry.adapter_users.get(name)]
                    candidates.extend((entry.adapter_used.get(name, 0.0), key, name) for name in idle)
            if not candidates:
                in_use = ", ".join(f"{key.label} ({entry.bytes >> 20} MB)" for key, entry in self._table.items()) or "nothing"
                log.info("out of room: %d bytes needed, limit %d, in use: %s", needed, self.memory_limit, in_use)
                raise OutOfRoom(
                    f"The model needs {needed >> 20} MB; models may take {self.memory_limit >> 20} MB together and those in use take "
                    f"{total >> 20} MB. Wait until running work is done, choose a smaller model, or raise memory_share."
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

    def _drop(self, key: _Wanted) -> None:
        """Release one model's memory. Holds the table's lock."""
        entry = self._table.pop(key)
        log.info("released %s (%d MB)", key.label, entry.bytes >> 20)
        entry.resident.release()
        del entry
        gc.collect()
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _shared_tokenizer(tokenizers: Mapping[Side, Any | None], rows: int) -> tuple[Any, dict[int, str]]:
    """The tokenizer that makes the prompts for both sides, and the tokens that only the finetuned side knows and has a row for: id -> text.

    `rows`: size of the finetuned model's vocabulary.

    Raises:
        InvalidInput: neither side brings a tokenizer.
    """
    from model_pairs.checks import added_tokens

    given = [each for each in tokenizers.values() if each is not None]
    if not given:
        raise InvalidInput("Neither side of this pair brings a tokenizer. Name one with `tokenizer_id`, or put it in the model's folder.")
    # The base's tokenizer, unless only the finetune has a chat template.
    tokenizer = next((each for each in given if each.chat_template), given[0])
    new_tokens: dict[int, str] = {}
    if len(given) == 2 and given[0] is not given[1]:
        new_tokens = {index: text for index, text in added_tokens(given[0], given[1]).items() if index < rows}
        if new_tokens:
            # Prompts must mean the same to both sides, so they are made without the new tokens.
            template, tokenizer = tokenizer.chat_template, given[0]
            if not tokenizer.chat_template and template:
                tokenizer = _with_template(tokenizer, template)
    return tokenizer, new_tokens


def _with_template(tokenizer: Any, template: str) -> Any:
    """A copy of the tokenizer with a chat template."""
    import copy

    copied = copy.copy(tokenizer)
    copied.chat_template = template
    return copied


def _folder(files: ModelFiles) -> Path:
    return local_folder(files.id, files.revision, files.subfolder)


def _steering(source: ModelSource, num_layers: int, d_model: int) -> tuple[Intervention, ...]:
    """The side's steering vector as an intervention. Raises NotTheSame when it has other dimensions than the model."""
    if source.steering is None:
        return ()
    from model_pairs.checks import read_vector
    from model_pairs.interventions import Intervention

    vector = read_vector(source.steering)
    if vector.shape[0] != d_model:
        raise NotTheSame(f"The steering vector has {vector.shape[0]} dimensions, the model's residual stream {d_model}.")
    return (Intervention(resolve_layer(source.steering.layer, num_layers).absolute, vector, source.steering.strength),)
