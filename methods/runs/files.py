"""The files of one run: its manifest, the record that reads them, and the writer that a method fills.
`diffing_mcp.methods.runs.store` is the store around them.

A run folder holds `manifest.json`, `result.json`, `arrays.safetensors`, `tables/<name>.parquet` and, where a method
wrote examples, `examples.sqlite`. No pickle. Torch-free.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, get_origin

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from diffing_mcp.core.atomic_files import library_versions, write_synced
from diffing_mcp.core.errors import DiffingError, InvalidInput, NotFinite, UnknownName
from diffing_mcp.core.validation_messages import complaints
from diffing_mcp.methods.examples.reader import FILE_NAME, ExampleReader
from diffing_mcp.methods.results import MethodResult

if TYPE_CHECKING:
    import pyarrow

    from diffing_mcp.methods.examples.writer import ExampleWriter
    from diffing_mcp.model_pairs.forward_count import ForwardCount

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


class RunManifest(BaseModel):
    """Everything that identifies a run and what it cost. Names real models: never show it to a blinded agent as it
    stands.
    """

    id: str
    key: str
    method: str
    method_version: int
    pair_name: str
    pair: dict[str, Any] = Field(description="fingerprint.pair_identity")
    params: dict[str, Any]
    key_parts: dict[str, Any] = Field(
        default_factory=dict, description="For corpus methods: {'corpus': {'id', 'content_hash'}}, and 'dropped' in it."
    )
    created: datetime
    seconds: float = Field(description="Seconds of the work, including the whole of a shared pass.")
    forward_passes: int | None = Field(
        None,
        description=(
            "Passes of one model over one batch, both sides together, including the whole of a shared pass; None: not "
            "counted."
        ),
    )
    forward_tokens: int | None = Field(
        None, description="Tokens that the models read in these passes, both sides together, padding left out."
    )
    generated_tokens: int | None = Field(None, description="Tokens that the models generated.")
    notes: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    arrays: dict[str, list[int]] = Field(default_factory=dict, description="Name -> shape.")
    tables: dict[str, int] = Field(default_factory=dict, description="Name -> number of rows.")
    examples: int = Field(0, description="Number of max-activating examples.")
    bytes: int = 0


class ResultForm(Protocol):
    """What a record has to know of its method; every `DiffingMethod` has it."""

    @property
    def name(self) -> str:
        """Name of the method."""

    @property
    def version(self) -> int:
        """Its version as installed."""

    @property
    def Result(self) -> type[MethodResult]:
        """Fields of its results."""


class RunRecord:
    """A finished run, read lazily.

    Args:
        find_method: name of a method -> what its results look like; asked only when a result is read, so that runs of
            methods that are not installed any more can be listed. Raises UnknownName.
    """

    def __init__(self, folder: Path, manifest: RunManifest, find_method: Callable[[str], ResultForm]) -> None:
        self.folder = folder
        self.manifest = manifest
        self._find_method = find_method

    @property
    def id(self) -> str:
        """Short id, such as `kl-1f3a9c`."""
        return self.manifest.id

    @property
    def remarks(self) -> list[str]:
        """What should be said of how the pair was put together when the run was made."""
        return [str(remark) for remark in self.manifest.notes.get("remarks", [])]

    def result_json(self) -> dict[str, Any]:
        """The stored result as plain JSON values.

        Raises:
            InvalidInput: the file is damaged.
        """
        try:
            return dict(json.loads(self._file("result.json").read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise InvalidInput(
                f"The stored result of run {self.id} is damaged ({error}). Delete the run, and run "
                f"{self.manifest.method} again."
            ) from error

    def _file(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise UnknownName(
                f"Run {self.id} is not there any more: it was deleted after it was looked up. Run "
                f"{self.manifest.method} again."
            )
        return path

    def result(self) -> MethodResult:
        """The stored result, validated by the method's `Result`.

        Raises:
            InvalidInput: the run was written by another version of the method, whose result had other fields, or holds
                what is no number.
        """
        method = self._find_method(self.manifest.method)
        try:
            return method.Result.model_validate(self.result_json())
        except ValidationError as error:
            if self.manifest.method_version == method.version:
                raise InvalidInput(
                    f"The stored result of run {self.id} cannot be read: {complaints(error)}. A number that is missing "
                    "was NaN or infinite. Delete the run, check the models, and run the method again."
                ) from error
            raise InvalidInput(
                f"Run {self.id} was written by version {self.manifest.method_version} of {method.name}; this is "
                f"version {method.version}. Run the method again."
            ) from error

    def report(self, result: MethodResult) -> str:
        """The result as text, and which rows and documents of its corpus were left out."""
        of_corpus = self.manifest.key_parts.get("corpus", {}).get("dropped")
        left_out = self.manifest.notes.get("text", {}).get("dropped_rows", of_corpus)
        return result.as_text() + (f"\nleft out of the corpus: {left_out}" if left_out else "")

    def array(self, name: str) -> np.ndarray:
        """One stored array, read without the others."""
        from safetensors import safe_open

        if name not in self.manifest.arrays:
            raise UnknownName(
                f"Run {self.id} has no array {name!r}; arrays: {', '.join(self.manifest.arrays) or 'none'}."
            )
        with safe_open(self._file("arrays.safetensors"), framework="numpy") as file:
            return np.asarray(file.get_tensor(name))

    def arrays(self) -> dict[str, np.ndarray]:
        """All stored arrays by name."""
        return {name: self.array(name) for name in self.manifest.arrays}

    def table(self, name: str, columns: Sequence[str] | None = None) -> pyarrow.Table:
        """A stored table (some columns of it)."""
        from pyarrow import parquet

        if name not in self.manifest.tables:
            raise UnknownName(
                f"Run {self.id} has no table {name!r}; tables: {', '.join(self.manifest.tables) or 'none'}."
            )
        # A ParquetFile, because read_table would take the folder structure for partition columns.
        return parquet.ParquetFile(self._file(f"tables/{name}.parquet")).read(columns=columns)

    def rows(
        self,
        name: str,
        columns: Sequence[str] | None = None,
        /,
        model: type[BaseModel] | None = None,
        **wanted: Any,
    ) -> list[dict[str, Any]]:
        """Rows of a stored table.

        Args:
            model: what `RunWriter.add_rows` was given; the objects inside of a row are then objects again.
            wanted: the values that rows have in these columns; None: whatever they have.
        """
        from pyarrow import compute

        table = self.table(name, columns)
        for column, value in wanted.items():
            if value is not None:
                table = table.filter(compute.equal(table[column], value))
        rows: list[dict[str, Any]] = table.to_pylist()
        fields = model.model_fields.items() if model else ()
        nested = [field for field, about in fields if _has_objects(about.annotation)]
        return [row | {field: json.loads(row[field]) for field in nested} for row in rows] if nested else rows

    def examples(self) -> ExampleReader:
        """The run's max-activating examples.

        Raises:
            UnknownName: it has none.
        """
        path = self.folder / FILE_NAME
        if not self.manifest.examples or not path.is_file():
            raise UnknownName(f"Run {self.id} holds no max-activating examples.")
        return ExampleReader(path)


class RunLookup(Protocol):
    """Finds finished runs; a `RunStore` is one."""

    def get(self, identifier: str) -> RunRecord:
        """The run with that id, or with an id or key that starts so, when it is the only one.

        Raises:
            UnknownName: none, or several.
        """


class StagedRun:
    """The `RunWriter` of one run that is being written. Set `result` before the context ends; `record` is there
    afterwards.
    """

    def __init__(self, folder: Path, store: RunLookup) -> None:
        self._folder = folder
        self.store = store
        """See `diffing_mcp.methods.contract.RunWriter`."""
        self._arrays: dict[str, np.ndarray] = {}
        self._tables: dict[str, int] = {}
        self._notes: dict[str, Any] = {}
        self._examples: ExampleWriter | None = None
        self.result: MethodResult | None = None
        self.record: RunRecord | None = None
        self.seconds: float | None = None
        """Set it when the work was not done within the context (a shared pass)."""
        self.forwards: ForwardCount | None = None
        """Set it to what the models were run for this result."""

    def add_array(self, name: str, values: Any) -> None:
        """See `diffing_mcp.methods.contract.RunWriter`."""
        self._arrays[_checked(name)] = np.ascontiguousarray(_numpy(values))

    def add_table(self, name: str, columns: Mapping[str, Sequence[Any] | Any]) -> None:
        """See `diffing_mcp.methods.contract.RunWriter`."""
        import pyarrow as pa
        from pyarrow import parquet

        table = pa.table({column: _column(values) for column, values in columns.items()})
        sink = pa.BufferOutputStream()
        parquet.write_table(table, sink, compression="zstd")
        (self._folder / "tables").mkdir(exist_ok=True)
        write_synced(self._folder / "tables" / f"{_checked(name)}.parquet", sink.getvalue())
        self._tables[name] = table.num_rows

    def add_rows(self, name: str, rows: Sequence[BaseModel], model: type[BaseModel]) -> None:
        """See `diffing_mcp.methods.contract.RunWriter`."""
        values = [row.model_dump() for row in rows]
        self.add_table(
            name,
            {
                field: _typed([row[field] for row in values], about.annotation)
                for field, about in model.model_fields.items()
            },
        )

    def examples(self, per_bin: int = 20) -> ExampleWriter:
        """See `diffing_mcp.methods.contract.RunWriter`."""
        from diffing_mcp.methods.examples.writer import ExampleWriter

        if self._examples is None or self._examples.per_bin != per_bin:
            self._examples = ExampleWriter(self._folder / FILE_NAME, per_bin)
        return self._examples

    def note(self, name: str, value: Any) -> None:
        """See `diffing_mcp.methods.contract.RunWriter`."""
        self._notes[name] = value

    def finish(self, identifier: str, digest: str, decided: Mapping[str, Any], seconds: float) -> RunManifest:
        """Write everything but what was written before, the manifest last."""
        from safetensors.numpy import save

        if self.result is None:
            raise InvalidInput(f"The method {decided['method']} ended without a result.")
        result = _checked_json(self.result, decided["method"])
        examples = self._examples.finish() if self._examples is not None else 0
        write_synced(self._folder / "arrays.safetensors", save(self._arrays))
        write_synced(self._folder / "result.json", result)
        manifest = RunManifest(
            id=identifier,
            key=digest,
            created=datetime.now(UTC),
            seconds=round(self.seconds if self.seconds is not None else seconds, 3),
            forward_passes=self.forwards.passes if self.forwards else None,
            forward_tokens=self.forwards.tokens if self.forwards else None,
            generated_tokens=self.forwards.generated if self.forwards else None,
            notes=self._notes,
            versions=library_versions(),
            arrays={name: list(array.shape) for name, array in self._arrays.items()},
            tables=self._tables,
            examples=examples,
            bytes=sum(file.stat().st_size for file in self._folder.rglob("*") if file.is_file()),
            **decided,
        )
        write_synced(self._folder / "manifest.json", manifest.model_dump_json(indent=1).encode())
        return manifest


def _checked_json(result: MethodResult, method: str) -> bytes:
    """A result as JSON that can be read again. Raises NotFinite for numbers that JSON does not have."""
    stored = result.model_dump_json()
    try:
        type(result).model_validate_json(stored)
    except ValidationError as error:
        where = ", ".join(sorted({f"`{'.'.join(str(part) for part in each['loc'])}`" for each in error.errors()})[:3])
        raise NotFinite(
            f"The result of {method} is NaN or infinite in {where}, so nothing is stored. Check that both models give "
            "finite numbers on this text."
        ) from error
    return stored.encode()


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise DiffingError(f"{name!r} cannot name an array or a table: letters, digits, `_`, `.` and `-` only.")
    return name


def _numpy(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):  # a torch tensor; numpy has no bfloat16
        tensor = values.detach().cpu()
        return np.asarray((tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy())
    return np.asarray(values)


def _typed(values: list[Any], annotation: Any) -> Any:
    """A column of a field; where its type is plain, it has that type without any value as well."""
    import pyarrow as pa

    inner = [part for part in get_args(annotation) if part is not type(None)]
    if _has_objects(annotation):
        return pa.array([json.dumps(value, ensure_ascii=False) for value in values], type=pa.string())
    plain = str if get_origin(annotation) is Literal else inner[0] if type(None) in get_args(annotation) else annotation
    types = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string()}
    return pa.array(values, type=types.get(plain))


def _has_objects(annotation: Any) -> bool:
    return any(isinstance(part, type) and issubclass(part, BaseModel) for part in get_args(annotation))


def _column(values: Any) -> Any:
    return _numpy(values) if hasattr(values, "detach") else values
