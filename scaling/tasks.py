"""The tasks of a batch. Each names everything that decides it in plain values, so that it can travel to another
machine, knows whether it is done, and can be done again without harm: results are keyed by content.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.progress import Progress
from diffing_mcp.core.validation_messages import complaints

if TYPE_CHECKING:
    from diffing_mcp.agents.records import EvaluationPlan
    from diffing_mcp.agents.suite_files import SuiteFile
    from diffing_mcp.methods.contract import CostEstimate, DiffingMethod, PairSize
    from diffing_mcp.model_pairs.residency import ModelPairs


class Workplace(Protocol):
    """What a task finds where it is done."""

    @property
    def models(self) -> ModelPairs:
        """Models in memory."""

    def server_url(self) -> str:
        """An MCP server on these machines."""


class Request(BaseModel):
    """One method with its parameters."""

    method: str
    params: dict[str, Any]


class _Task(BaseModel):
    @property
    def id(self) -> str:
        """A digest of the task: equal tasks have equal ids."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


class MethodsTask(_Task):
    """Methods on one pair; those that read the same text share a pass."""

    kind: Literal["methods"] = "methods"
    pair: str
    requests: list[Request]

    @property
    def label(self) -> str:
        """In words."""
        return f"{self.pair}: {', '.join(request.method for request in self.requests)}"

    @property
    def base(self) -> str:
        """What must be in memory: tasks of one base go to one worker where that is possible."""
        return _base_of(self.pair)

    def named_runs(self) -> list[str]:
        """How the keys of runs begin whose vectors the methods are given."""
        from diffing_mcp.methods.directions.vectors import handles

        return [handle.run.rpartition("-")[2] for handle in handles([params for _, params in self._checked()])]

    def run_keys(self) -> list[str]:
        """Keys of the runs that it asks for, stored or not.

        Raises:
            UnknownName: a run whose vector it names is not there.
        """
        from diffing_mcp.methods.runs.store import run_key
        from diffing_mcp.model_pairs.resolve import resolve_pair

        spec = resolve_pair(self.pair)
        return [run_key(method, spec, params).digest for method, params in self._checked()]

    def _checked(self) -> list[tuple[DiffingMethod[Any, Any], Any]]:
        """The methods with their parameters, typed."""
        from diffing_mcp.methods.registry import get_method
        from diffing_mcp.methods.runs.execute import check_params

        methods = [get_method(request.method) for request in self.requests]
        return [
            (method, check_params(method, each.params)) for method, each in zip(methods, self.requests, strict=True)
        ]

    def products(self) -> list[str] | None:
        """Ids of the stored runs when all of them are there, else None. Loads no model."""
        from diffing_mcp.methods.runs.execute import find_finished
        from diffing_mcp.methods.runs.store import default_store
        from diffing_mcp.model_pairs.resolve import resolve_pair

        spec, store = resolve_pair(self.pair), default_store()
        found = [find_finished(spec, request.method, request.params, store) for request in self.requests]
        return [record.id for record in found if record] if all(found) else None

    def estimate(self, size: PairSize) -> CostEstimate:
        """What it costs when nothing of it is there."""
        from diffing_mcp.methods.runs.execute import estimate

        return estimate(size, [(request.method, request.params) for request in self.requests])

    def perform(self, place: Workplace, progress: Progress) -> list[str]:
        """Do it; ids of the runs."""
        from diffing_mcp.methods.runs.execute import run_methods
        from diffing_mcp.methods.runs.store import default_store
        from diffing_mcp.model_pairs.resolve import resolve_pair

        requests = [(request.method, request.params) for request in self.requests]
        records = run_methods(place.models, resolve_pair(self.pair), requests, default_store(), progress)
        return [record.id for record in records]


class CollectionTask(_Task):
    """The activations of one pair on a corpus."""

    kind: Literal["activations"] = "activations"
    pair: str
    params: dict[str, Any]

    @classmethod
    def checked(cls, pair: str, parameters: dict[str, Any]) -> CollectionTask:
        """With parameters that are in range.

        Raises:
            InvalidInput: one is not.
        """
        from diffing_mcp.preprocessing.activation_collection import CollectionParams

        try:
            params = CollectionParams.model_validate(parameters)
        except ValidationError as error:
            fields = list(CollectionParams.model_fields)
            raise InvalidInput(f"activations: {complaints(error, fields)}. Parameters: {', '.join(fields)}.") from None
        return cls(pair=pair, params=params.model_dump(mode="json"))

    @property
    def label(self) -> str:
        """In words."""
        return f"{self.pair}: activations"

    @property
    def base(self) -> str:
        """What must be in memory."""
        return _base_of(self.pair)

    def products(self) -> list[str] | None:
        """Id of the finished collection, None while there is none."""
        from diffing_mcp.model_pairs.resolve import resolve_pair
        from diffing_mcp.preprocessing.activation_collection import CollectionParams, find_collection
        from diffing_mcp.preprocessing.activation_store import default_activation_store

        params = CollectionParams.model_validate(self.params)
        index = find_collection(default_activation_store(), resolve_pair(self.pair), params)
        return None if index is None else [index.id]

    def estimate(self, size: PairSize) -> CostEstimate:
        """Tokens of both sides, and bytes on disk where the pair's sizes are known."""
        from diffing_mcp.preprocessing.activation_collection import CollectionParams

        params = CollectionParams.model_validate(self.params)
        tokens = params.max_samples * params.max_tokens
        layers = len(params.layers)
        stored = 2 * tokens * layers * (size.d_model or 0) * 2  # two sides, two bytes a number
        return size.cost(2 * tokens, 2 * max(1, tokens // 2048), bytes=stored)

    def perform(self, place: Workplace, progress: Progress) -> list[str]:
        """Do it; what was cut off goes on at its last finished shard."""
        from diffing_mcp.model_pairs.resolve import resolve_pair
        from diffing_mcp.preprocessing.activation_collection import CollectionParams, collect
        from diffing_mcp.preprocessing.activation_store import default_activation_store

        params = CollectionParams.model_validate(self.params)
        with place.models.use(resolve_pair(self.pair), progress) as pair:
            return [collect(default_activation_store(), pair, params, progress).id]


class EvaluationTask(_Task):
    """One investigation of a suite, graded."""

    kind: Literal["evaluation"] = "evaluation"
    suite: str = Field(description="Its name.")
    contents: dict[str, Any] = Field(description="Of its file, which need not be there where the task is done.")
    evaluation: str = Field(description="Id of the evaluation that the cell belongs to.")
    cell: str
    organism: str

    @classmethod
    def of_suite(cls, suite: str) -> list[EvaluationTask]:
        """A task for each cell.

        Raises:
            UnknownName, InvalidInput: there is no such suite, or its file is wrong.
        """
        from diffing_mcp.agents.cells import cells_of
        from diffing_mcp.agents.suite_files import plans_of, read_suite

        name, read = read_suite(suite)
        contents = read.model_dump(mode="json")
        return [
            cls(suite=name, contents=contents, evaluation=plan.id, cell=cell.id, organism=cell.organism)
            for plan in plans_of(name, read)
            for cell in cells_of(plan)
        ]

    def plans(self) -> list[EvaluationPlan]:
        """All evaluations of its suite: they share its cap."""
        from diffing_mcp.agents.suite_files import plans_of

        return plans_of(self.suite, self._read())

    def _read(self) -> SuiteFile:
        from diffing_mcp.agents.suite_files import SuiteFile

        return SuiteFile.model_validate(self.contents)

    @property
    def label(self) -> str:
        """In words."""
        return f"{self.evaluation}: {self.cell}"

    @property
    def base(self) -> str:
        """What must be in memory."""
        return _base_of(self.organism)

    def products(self) -> list[str] | None:
        """The cell's name once its record is finished."""
        from diffing_mcp.agents.records import EvaluationFolder

        record = EvaluationFolder(self.evaluation).get(self.cell, self.organism)
        return [self.cell] if record is not None and record.status == "completed" else None

    def estimate(self, size: PairSize) -> CostEstimate:
        """Not known in tokens of the models: what an investigator asks is up to it. `diffing evaluate --estimate` tells
        what its own language model costs.
        """
        return size.cost(0, 0)

    def perform(self, place: Workplace, progress: Progress) -> list[str]:
        """Do it, on the worker's own server.

        Raises:
            TaskFailed: the record says that the investigation failed.
        """
        from diffing_mcp.scaling.evaluating import investigate

        progress(0, None, "investigating")
        return [investigate(self.suite, self._read(), self.evaluation, self.cell, place.server_url(), progress)]


def known_size(pair: str) -> PairSize:
    """What the configuration of a pair's base says, where its files are on this machine already; loads no model."""
    from diffing_mcp.methods.contract import PairSize
    from diffing_mcp.model_pairs.checkpoint import read_json
    from diffing_mcp.model_pairs.files import cached_folder
    from diffing_mcp.model_pairs.resolve import resolve_pair

    files = resolve_pair(pair).base.files
    folder = cached_folder(files.id, files.revision, files.subfolder)
    if folder is None or not (folder / "config.json").is_file():
        return PairSize()
    stored = read_json(folder / "config.json")
    text = {**stored, **(stored.get("text_config") or {})}
    return PairSize(
        num_layers=text.get("num_hidden_layers", text.get("n_layer")),
        d_model=text.get("hidden_size", text.get("n_embd")),
        vocab_size=text.get("vocab_size"),
    )


Task = MethodsTask | CollectionTask | EvaluationTask
ANY_TASK: TypeAdapter[Task] = TypeAdapter(Annotated[Task, Field(discriminator="kind")])


class Outcome(BaseModel):
    """What became of a task."""

    task: Annotated[Task, Field(discriminator="kind")]
    state: Literal["done", "reused", "failed"] = Field(description="`reused`: it was there already.")
    products: list[str] = Field(default_factory=list, description="Ids of runs or collections; names of cells.")
    error: str = ""
    seconds: float = 0.0
    worker: str = ""


@lru_cache(8192)  # asked of every task that is left whenever one is given out
def _base_of(pair: str) -> str:
    from diffing_mcp.model_pairs.resolve import resolve_pair

    return resolve_pair(pair).base.files.id
