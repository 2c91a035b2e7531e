"""Pairs put together from models in memory (`resident_models`): their files checked, their tokenizers chosen, their
sides held. Two full models that do not fit together make a `sequential` pair, whose sides are loaded in turn.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

from diffing_mcp.core.errors import NotTheSame
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.model_pairs.adapter_files import OWN_ADAPTER, adapter_name, read_adapter
from diffing_mcp.model_pairs.answering import AnsweringPair, AnsweringSide, AnsweringSides, SideHere
from diffing_mcp.model_pairs.endpoints import WeightsNeeded, read_endpoint
from diffing_mcp.model_pairs.files import local_folder
from diffing_mcp.model_pairs.pair import LoadedPair
from diffing_mcp.model_pairs.pair_tokenizers import PairTokenizers, choose_tokenizers, tokenizer_files
from diffing_mcp.model_pairs.resident import context_length_of
from diffing_mcp.model_pairs.resident_models import ResidentModels
from diffing_mcp.model_pairs.sides import LoadedSide
from diffing_mcp.model_pairs.specs import SIDES, AdapterFiles, ModelFiles, ModelSource, PairSpec, Side
from diffing_mcp.model_pairs.wanted_models import folder_of, state_of_files, vocabulary_rows, wanted_model

if TYPE_CHECKING:
    import torch

    from diffing_mcp.model_pairs.resident import ResidentModel


class ModelPairs:
    """All pairs of this process, on the models that they share. Thread-safe."""

    def __init__(self, memory_limit: int | None = None) -> None:
        """`memory_limit`: bytes that models may take; none: `memory_share` of the device's memory."""
        self.models = ResidentModels(memory_limit)
        """What is in memory."""
        self._tokenizers: dict[tuple[ModelFiles, str], Any] = {}
        self._checked: set[tuple[PairSpec, str, str]] = set()
        self._chosen_tokenizers: dict[tuple[Any, ...], PairTokenizers] = {}
        self._lock = threading.RLock()

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
        from diffing_mcp.core.devices import choose_device
        from diffing_mcp.model_pairs.checks import adapter_remarks, check_configs, check_different, check_vocabularies
        from diffing_mcp.model_pairs.configurations import config_differences, config_remarks
        from diffing_mcp.model_pairs.loading import compute_dtype, estimated_bytes, read_config

        progress(0, None, "reading the pair")
        sources: dict[Side, ModelSource] = {"base": spec.base, "finetuned": spec.finetuned}
        configs = {side: read_config(source.files, folder_of(source.files)) for side, source in sources.items()}
        dtype, remarks = compute_dtype(spec.base.files, spec.finetuned.files, choose_device())
        wanted = {side: wanted_model(source, dtype) for side, source in sources.items()}
        tokenizers = self._pair_tokenizers(spec, configs)
        base, finetuned = spec.base, spec.finetuned
        checked = (spec, state_of_files(base.files, base.adapter), state_of_files(finetuned.files, finetuned.adapter))
        configuration = config_differences(configs["base"], configs["finetuned"])
        if checked not in self._checked:
            check_configs(configs["base"], configs["finetuned"])
            check_different(spec, configuration)
            with self._lock:
                self._checked.add(checked)
        tokenizer = tokenizers.prompts
        vocabulary = check_vocabularies(configs["base"], configs["finetuned"], tokenizers.known, tokenizers.compared)
        vocabulary = min(vocabulary, *(vocabulary_rows(source, configs[side]) for side, source in sources.items()))

        sequential = False
        if wanted["base"] != wanted["finetuned"]:
            others = self.models.bytes_in_use(apart_from=list(wanted.values()))
            needed = others + sum(estimated_bytes(source.files, dtype) for source in sources.values())
            sequential = needed > self.models.memory_limit

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
                stops=tokenizers.stops,
                new_tokens=tokenizers.new_tokens,
                finetuned_tokenizer=tokenizers.answers,
                remarks=(
                    *remarks,
                    *config_remarks(configuration),
                    *tokenizers.remarks,
                    *adapter_remarks(spec.base),
                    *adapter_remarks(spec.finetuned),
                ),
                configuration=configuration,
            )

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

        def hold() -> AbstractContextManager[ResidentModel]:
            return self.models.held(
                wanted, tokenizer, stored, name if shared is not None else None, spec.name, progress
            )

        def digest() -> str:
            from diffing_mcp.model_pairs.weight_digest import side_digest

            known = self.models.digest(wanted)
            if known is None:
                with hold() as resident:
                    known = resident.digest
            return side_digest(
                known,
                None if stored is None else adapter_name(stored.folder),
                [(each.layer, each.strength, each.vector) for each in steering],
            )

        return LoadedSide(hold, name, steering, in_memory=lambda: wanted in self.models, digest=digest)
