"""Where text comes from: bundled corpora, local files (.jsonl, .txt, .parquet) and Hugging Face datasets. Torch-free.

Formats
- `.jsonl`: one JSON object a line; `.parquet`: a table. Without `column` the first of these that a row has is read:
  `text` (a string), `messages` or `conversations` (a list of {"role", "content"} or, as in ShareGPT, {"from",
  "value"}), or what a user says and its answer: `prompt` and `completion`, `instruction` (with `input`) and `output`,
  `prompt` and `response`, `question` and `answer`. Of a content that is a list of parts, the texts count, joined by
  newlines. A role `developer` is `system`.
- `.txt`: when the file has a blank line, documents are separated by blank lines; otherwise every line is a document.
- `training:ORGANISM`: what a bundled organism was trained on (the answer to a blinded investigation: only operators may
  name it through the server).
- `hub:ID[:config][#column][@split]`: a dataset of the hub, streamed, with the columns above; `@split` defaults to
  `train`.

Rows that are no document (not JSON, no known column, a message without text) are dropped and counted, and the first of
them named (`Corpus.dropped`); so is, where texts and chats are mixed, whichever is less frequent. Empty texts and blank
lines are no rows.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TextIO

from pydantic import BaseModel, ConfigDict, Field, model_validator

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.core.seeds import Seed
from diffing_mcp.organisms.specs import ORGANISMS_FOLDER
from diffing_mcp.preprocessing.corpus_rows import (
    BadRow,
    Document,
    Dropped,
    characters_of,
    columns_of,
    json_document,
    plain_document,
    row_document,
)

BUNDLED = ("unrelated_texts", "chat_exchanges")
TRAINING_FOLDER = ORGANISMS_FOLDER / "training"
BUNDLED_FOLDER = ORGANISMS_FOLDER / "corpora"
LOCAL_SUFFIXES = (".jsonl", ".txt", ".parquet")
DEFAULT_MIN_TOKENS = 2
MOST_CHARACTERS = 1_000_000_000
"""Of all documents of a corpus together, and of one line: what is held in memory, however small the file is."""
UNPACKED_BYTES, UNPACKED_TIMES = 2**28, 100
"""A column of a parquet file may unpack to more than both of these (the second: times its size) in no row group."""


class CorpusParams(BaseModel):
    """Which text both models read, and how much of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    corpus: str = Field(
        "unrelated_texts",
        description=(
            "`unrelated_texts` or `chat_exchanges` (bundled), `training:ORGANISM`, "
            "`hub:ID[:config][#column][@split]`, or a .jsonl, .txt or .parquet file."
        ),
    )
    max_samples: int = Field(1000, ge=1, le=1_000_000, description="Documents read at most.")
    max_tokens: int = Field(
        30,
        ge=1,
        le=8192,
        description="Tokens compared in each document at most (in a chat: counted from just before the answer).",
    )
    min_tokens: int | None = Field(
        None,
        ge=1,
        description=f"Shorter documents are dropped and counted. None: {DEFAULT_MIN_TOKENS}, at most max_tokens.",
    )
    seed: Seed = Field(0, description="Order in which documents are drawn.")
    column: str | None = Field(
        None, description="Column of the text or chat. None: `text`, `messages` or another known."
    )

    @model_validator(mode="after")
    def _lengths_fit(self) -> CorpusParams:
        if self.min_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens ({self.min_tokens}) must be at most max_tokens ({self.max_tokens}).")
        return self

    @property
    def shortest(self) -> int:
        """The number of tokens below which a document is dropped."""
        return self.min_tokens if self.min_tokens is not None else min(DEFAULT_MIN_TOKENS, self.max_tokens)


@dataclass(frozen=True)
class Corpus:
    """Documents in the order in which they are drawn (more than `max_samples`, because short ones are dropped after
    tokenising).
    """

    id: str
    content_hash: str
    kind: Literal["text", "chat"]
    documents: tuple[Any, ...]
    """strings when `kind` is "text", lists of messages when it is "chat" """
    numbers: tuple[int, ...] = ()
    """Line, row or document of the file, from 1, that each document comes from; empty: its own place in `documents`."""
    dropped: Dropped = field(default_factory=Dropped)
    """Rows that were read and are no documents."""

    def number(self, index: int) -> int:
        """Where document `index` comes from, in `dropped.unit`s."""
        return self.numbers[index] if self.numbers else index + 1


def corpus_identity(params: CorpusParams) -> dict[str, str]:
    """Id and content hash of what `load_corpus(params)` gives: the part of a run's key that names the text.

    Where rows were dropped it says so (`dropped`): a run names them, so it is another run when others are.
    """
    corpus = load_corpus(params)
    dropped = {"dropped": "; ".join(corpus.dropped.lines())} if corpus.dropped.count else {}
    return {"id": corpus.id, "content_hash": corpus.content_hash, **dropped}


def load_corpus(params: CorpusParams) -> Corpus:
    """The documents of a corpus in a seeded random order.

    At most `max(4 * max_samples, 20_000)` rows of a local file are read (from its start) before they are put in order,
    and twice `max_samples` plus 100 of a hub dataset, of either no more than `MOST_CHARACTERS`, so that a corpus larger
    than memory does no harm.

    Raises:
        UnknownName: no such bundled corpus or file.
        InvalidInput: no documents (it says what became of the rows), an unreadable file or dataset, one that unpacks to
            far more than it is.
    """
    name = params.corpus
    if name.startswith("hub:"):
        return _load_cached(name, params.column, params.seed, 2 * params.max_samples + 100, 0)
    path = _local_path(name)
    stamp = path.stat()
    return _load_cached(
        name, params.column, params.seed, max(4 * params.max_samples, 20_000), stamp.st_mtime_ns ^ stamp.st_size
    )


def _local_path(name: str) -> Path:
    if name in BUNDLED:
        path = BUNDLED_FOLDER / f"{name}.jsonl"
        if not path.is_file():
            raise UnknownName(
                f"The bundled corpus {name} is missing from this installation; reinstall, or give the path of a file."
            )
        return path
    if name.startswith("training:"):
        return _training_path(name.removeprefix("training:"))
    if not name.endswith(LOCAL_SUFFIXES):
        raise UnknownName(
            f"There is no corpus {name!r}. Give {', '.join(BUNDLED)}, hub:ID#column@split, or the path of a "
            f"{', '.join(LOCAL_SUFFIXES)} file."
        )
    with suppress(OSError, RuntimeError):  # a name too long, a folder that must not be read, a home folder of nobody
        path = Path(name).expanduser()
        if path.is_file():
            return path
    raise UnknownName(f"There is no file {name!r}.")


def _training_path(organism: str) -> Path:
    known = sorted(path.parent.name for path in TRAINING_FOLDER.glob("*/data.jsonl"))
    if organism not in known:
        raise UnknownName(
            f"There is no training data of {organism!r} in this installation. Give training:NAME with one of "
            f"{', '.join(known)}."
        )
    return TRAINING_FOLDER / organism / "data.jsonl"


@dataclass(frozen=True)
class _Rows:
    """What a source holds, row by row, before anything is asked of a row."""

    source: str
    unit: Literal["line", "row", "document"]
    numbered: Iterator[tuple[int, Any]]
    """Numbers from 1 and what stands there."""
    document: Callable[[Any], Document | None]
    """What stands there as a document, None when it is empty; raises BadRow."""


@lru_cache(maxsize=8)
def _load_cached(name: str, column: str | None, seed: int, limit: int, _stamp: int) -> Corpus:
    rows = _hub_rows(name, column, seed, limit) if name.startswith("hub:") else _file_rows(name, column)
    dropped = Dropped(rows.source, rows.unit)
    found: list[tuple[int, Document]] = []
    characters = 0
    for number, row in islice(rows.numbered, limit):
        if characters >= MOST_CHARACTERS:
            break
        try:
            document = rows.document(row)
        except BadRow as error:
            dropped.add(str(error), number)
            continue
        if document:
            found.append((number, document))
            characters += characters_of(document)
    if not found:
        why = f"What was read of it: {'; '.join(dropped.lines())}" if dropped.count else "It is empty"
        raise InvalidInput(
            f"The corpus {name!r} holds no documents. {why}. A row needs a column `text`, `messages`, `conversations` "
            "or a pair such as `prompt` and `completion`; name another one with `column`."
        )
    kind = _most_frequent_kind([document for _, document in found])
    kept = []
    for number, document in found:
        if _kind(document) == kind:
            kept.append((number, document))
        else:
            dropped.add("a chat among plain texts" if kind == "text" else "a plain text among chats", number)
    random.Random(seed).shuffle(kept)
    documents = tuple(document for _, document in kept)
    digest = hashlib.sha256(json.dumps(documents, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()
    return Corpus(name, digest, kind, documents, tuple(number for number, _ in kept), dropped)


def _kind(document: Document) -> Literal["text", "chat"]:
    return "text" if isinstance(document, str) else "chat"


def _most_frequent_kind(documents: list[Document]) -> Literal["text", "chat"]:
    """On a tie that of the first."""
    return Counter(map(_kind, documents)).most_common(1)[0][0]


def _file_rows(name: str, column: str | None) -> _Rows:
    path = _local_path(name)
    source = name if name in BUNDLED or name.startswith("training:") else path.name
    if path.suffix == ".parquet":
        return _Rows(
            source,
            "row",
            enumerate(_parquet_rows(path, column), start=1),
            lambda row: row_document(_python(row), column),
        )
    if path.suffix == ".jsonl":
        return _Rows(source, "line", _lines(path), lambda line: json_document(line, column))
    return _Rows(source, "document", enumerate(_blocks(path), start=1), plain_document)


def _open(path: Path) -> TextIO:
    """The text of a file, in which bytes that are not UTF-8 are halves of surrogate pairs: rows that have any are
    dropped.
    """
    try:
        with path.open("rb") as file:
            if file.read(2) in (
                b"\xff\xfe",
                b"\xfe\xff",
            ):  # read as UTF-8, most of it would be letters with NULs between them
                raise InvalidInput(f"{path.name} is UTF-16, not UTF-8 text. Save it as UTF-8.")
        return path.open(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise InvalidInput(f"{path.name} could not be read ({error.strerror}).") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with _open(path) as file:
        lines = iter(lambda: file.readline(MOST_CHARACTERS + 1), "")
        for number, line in enumerate(lines, start=1):
            if len(line) > MOST_CHARACTERS:
                raise InvalidInput(f"Line {number} of {path.name} has more than {MOST_CHARACTERS} characters.")
            if line.strip():
                yield number, line


def _blocks(path: Path) -> list[str]:
    with _open(path) as file:
        text = file.read(MOST_CHARACTERS).strip()  # universal newlines
    blocks = re.split(r"\n(?:[ \t]*\n)+", text)
    return blocks if len(blocks) > 1 else text.split("\n")


def _parquet_rows(path: Path, column: str | None) -> Iterator[dict[str, Any]]:
    """Rows as scalars of arrow: each may be broken by itself."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        columns = columns_of(file.schema_arrow.names, column)
        leaves = {
            place: leaf.path
            for place, leaf in enumerate(file.schema)
            if leaf.path in columns or leaf.path.split(".")[0] in columns
        }
        _check_unpacked(path.name, file.metadata, list(leaves))
        # A text that stands in many rows is held once; unpacked row by row, a small file would fill the memory.
        texts = [leaf for place, leaf in leaves.items() if file.schema.column(place).physical_type == "BYTE_ARRAY"]
        file = parquet.ParquetFile(path, read_dictionary=texts)
        for batch in file.iter_batches(columns=list(columns)):
            yield from (
                dict(zip(columns, row, strict=True))
                for row in zip(*(batch.column(name) for name in columns), strict=True)
            )
    except BadRow as error:
        raise InvalidInput(f"{path.name}: {error}.") from error
    except (pa.ArrowException, OSError) as error:
        raise InvalidInput(f"{path.name} is not a readable parquet file.") from error


def _check_unpacked(name: str, metadata: Any, columns: Sequence[int]) -> None:
    """
    Raises:
        InvalidInput: one of these columns unpacks to far more than its size, by what the file says of itself.
    """
    for group in range(metadata.num_row_groups):
        for place in columns:
            chunk = metadata.row_group(group).column(place)
            unpacked = max(chunk.total_uncompressed_size, 4 * chunk.num_values)
            if unpacked > max(UNPACKED_BYTES, UNPACKED_TIMES * chunk.total_compressed_size):
                raise InvalidInput(
                    f"{name}: {chunk.path_in_schema} unpacks to {unpacked / 1e6:.0f} MB from "
                    f"{chunk.total_compressed_size / 1e6:.3g} MB, which is refused. Write it in smaller row groups."
                )


def _python(row: dict[str, Any]) -> dict[str, Any]:
    try:
        return {name: scalar.as_py() for name, scalar in row.items()}
    except UnicodeDecodeError as error:
        raise BadRow("not UTF-8") from error


def _hub_rows(name: str, column: str | None, seed: int, limit: int) -> _Rows:
    identifier, config, named_column, split = parse_hub(name)
    wanted = column or named_column

    def rows() -> Iterator[dict[str, Any]]:
        from datasets import load_dataset

        try:
            dataset = load_dataset(identifier, config, split=split, streaming=True)
            if dataset.column_names:
                columns_of(dataset.column_names, wanted)
            yield from dataset.shuffle(seed=seed, buffer_size=min(10 * limit, 10_000))
        except BadRow as error:
            raise InvalidInput(f"{name}: {error}.") from error
        except Exception as error:  # datasets raises many kinds: missing, gated, offline, bad split
            raise InvalidInput(
                f"The dataset {name!r} could not be read ({type(error).__name__}: "
                f"{str(error).splitlines()[0][:200] if str(error) else ''})."
            ) from error

    return _Rows(name, "row", enumerate(rows(), start=1), lambda row: row_document(row, wanted))


def parse_hub(name: str) -> tuple[str, str | None, str | None, str]:
    """Split `hub:ID[:config][#column][@split]` into id, config, column and split (default `train`).

    Raises:
        InvalidInput: no id, or an empty part.
    """
    rest, at, split = name.removeprefix("hub:").partition("@")
    rest, mark, column = rest.partition("#")
    identifier, colon, config = rest.partition(":")
    if not identifier or (at and not split) or (mark and not column) or (colon and not config):
        raise InvalidInput(f"{name!r} is not of the form hub:ID[:config][#column][@split].")
    return identifier, config or None, column or None, split or "train"
