"""Where text comes from: bundled corpora, local files (.jsonl, .txt, .parquet) and Hugging Face datasets. Torch-free.

Formats
- `.jsonl`: one JSON object a line with the column `text` (a string) or `messages` (a list of {"role", "content"}); `column` names another one.
- `.parquet`: the same columns.
- `.txt`: when the file has a blank line, documents are separated by blank lines; otherwise every line is a document.
- `training:ORGANISM`: what a bundled organism was trained on (the answer to a blinded investigation: only operators may name it through the server).
- `hub:ID[:config]#column@split`: a dataset of the hub, streamed; `#column` and `@split` default to `text`/`messages` and `train`.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from organisms.errors import InvalidInput, UnknownName

Message = dict[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}"""

BUNDLED = ("unrelated_texts", "chat_exchanges")
TRAINING_FOLDER = Path(__file__).resolve().parent.parent / "organisms" / "training"
BUNDLED_FOLDER = Path(__file__).resolve().parent.parent / "organisms" / "corpora"
LOCAL_SUFFIXES = (".jsonl", ".txt", ".parquet")
DEFAULT_MIN_TOKENS = 2


class CorpusParams(BaseModel):
    """Which text both models read, and how much of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    corpus: str = Field(
        "unrelated_texts",
        description="`unrelated_texts` or `chat_exchanges` (bundled), `training:ORGANISM`, `hub:ID[:config][#column][@split]`, or a .jsonl, .txt or .parquet file.",
    )
    max_samples: int = Field(1000, ge=1, le=1_000_000, description="Documents read at most.")
    max_tokens: int = Field(
        30, ge=1, le=8192, description="Tokens compared in each document at most (in a chat: counted from just before the answer)."
    )
    min_tokens: int | None = Field(
        None, ge=1, description=f"Shorter documents are dropped and counted. None: {DEFAULT_MIN_TOKENS}, at most max_tokens."
    )
    seed: int = Field(0, ge=0, description="Order in which documents are drawn.")
    column: str | None = Field(None, description="Column with the text. None: `text`, else `messages`.")

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
    """Documents in the order in which they are drawn (more than `max_samples`, because short ones are dropped after tokenising)."""

    id: str
    content_hash: str
    kind: Literal["text", "chat"]
    documents: tuple[Any, ...]
    """strings when `kind` is "text", lists of messages when it is "chat" """


def corpus_identity(params: CorpusParams) -> dict[str, str]:
    """Id and content hash of what `load_corpus(params)` gives: the part of a run's key that names the text."""
    corpus = load_corpus(params)
    return {"id": corpus.id, "content_hash": corpus.content_hash}


def load_corpus(params: CorpusParams) -> Corpus:
    """The documents of a corpus in a seeded random order.

    At most `max(4 * max_samples, 20_000)` documents of a local file are read (from its start) before they are put in order, and twice
    `max_samples` plus 100 of a hub dataset, so that a corpus larger than memory does no harm.

    Raises:
        UnknownName: no such bundled corpus or file.
        InvalidInput: no documents, a missing column, a malformed line, an unreadable file or dataset.
    """
    name = params.corpus
    if name.startswith("hub:"):
        return _load_cached(name, params.column, params.seed, 2 * params.max_samples + 100, 0)
    path = _local_path(name)
    stamp = path.stat()
    return _load_cached(name, params.column, params.seed, max(4 * params.max_samples, 20_000), stamp.st_mtime_ns ^ stamp.st_size)


def _local_path(name: str) -> Path:
    if name in BUNDLED:
        path = BUNDLED_FOLDER / f"{name}.jsonl"
        if not path.is_file():
            raise UnknownName(f"The bundled corpus {name} is missing from this installation; reinstall, or give the path of a file.")
        return path
    if name.startswith("training:"):
        return _training_path(name.removeprefix("training:"))
    if not name.endswith(LOCAL_SUFFIXES):
        raise UnknownName(
            f"There is no corpus {name!r}. Give {', '.join(BUNDLED)}, hub:ID#column@split, or the path of a {', '.join(LOCAL_SUFFIXES)} file."
        )
    path = Path(name).expanduser()
    if not path.is_file():
        raise UnknownName(f"There is no file {name!r}.")
    return path


def _training_path(organism: str) -> Path:
    known = sorted(path.parent.name for path in TRAINING_FOLDER.glob("*/data.jsonl"))
    if organism not in known:
        raise UnknownName(f"There is no training data of {organism!r} in this installation. Give training:NAME with one of {', '.join(known)}.")
    return TRAINING_FOLDER / organism / "data.jsonl"


@lru_cache(maxsize=8)
def _load_cached(name: str, column: str | None, seed: int, limit: int, _stamp: int) -> Corpus:
    rows = list(islice(_hub_rows(name, column, seed, limit) if name.startswith("hub:") else _file_rows(_local_path(name), column), limit))
    documents = [document for document in (_document(row, name) for row in rows) if document]
    if not documents:
        raise InvalidInput(f"The corpus {name!r} holds no documents.")
    kinds = {"text" if isinstance(document, str) else "chat" for document in documents}
    if len(kinds) > 1:
        raise InvalidInput(f"The corpus {name!r} mixes plain texts and chats; give a column that holds one kind.")
    random.Random(seed).shuffle(documents)
    digest = hashlib.sha256(json.dumps(documents, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()
    kind: Literal["text", "chat"] = "text" if "text" in kinds else "chat"
    return Corpus(id=name, content_hash=digest, kind=kind, documents=tuple(documents))


def _file_rows(path: Path, column: str | None) -> Iterator[Any]:
    try:
        if path.suffix == ".txt":
            yield from _text_rows(path)
        elif path.suffix == ".jsonl":
            yield from _jsonl_rows(path, column)
        else:
            yield from _parquet_rows(path, column)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path.name} is not UTF-8 text (byte {error.start}).") from error


def _text_rows(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8-sig").strip()  # universal newlines
    blocks = re.split(r"\n(?:[ \t]*\n)+", text)
    return blocks if len(blocks) > 1 else text.split("\n")


def _jsonl_rows(path: Path, column: str | None) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InvalidInput(f"{path.name}, line {number}: not JSON ({error.msg}).") from error
            if not isinstance(row, dict):
                raise InvalidInput(f'{path.name}, line {number}: each line must be a JSON object, such as {{"text": "..."}}.')
            yield row[_choose_column(row, column, f"{path.name}, line {number}")]


def _parquet_rows(path: Path, column: str | None) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        name = _choose_column(file.schema_arrow.names, column, path.name)
        for batch in file.iter_batches(columns=[name]):
            yield from batch.column(0).to_pylist()
    except pa.ArrowInvalid as error:
        raise InvalidInput(f"{path.name} is not a readable parquet file.") from error


def _hub_rows(name: str, column: str | None, seed: int, limit: int) -> Iterator[Any]:
    from datasets import load_dataset

    identifier, config, named_column, split = parse_hub(name)
    try:
        dataset = load_dataset(identifier, config, split=split, streaming=True)
        dataset = dataset.shuffle(seed=seed, buffer_size=min(10 * limit, 10_000))
        for row in dataset:
            yield row[_choose_column(row, column or named_column, name)]
    except InvalidInput:
        raise
    except Exception as error:  # datasets raises many kinds: missing, gated, offline, bad split
        raise InvalidInput(
            f"The dataset {name!r} could not be read ({type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''})."
        ) from error


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


def _choose_column(names: Iterable[str], column: str | None, where: str) -> str:
    present = list(names)
    wanted = [column] if column else ["text", "messages"]
    for name in wanted:
        if name in present:
            return name
    raise InvalidInput(f"{where}: no column {' or '.join(repr(name) for name in wanted)}; columns: {', '.join(present[:20])}.")


def _document(value: Any, name: str) -> str | list[Message] | None:
    """A document as text or messages; None when it is empty."""
    if value is None:
        return None
    if isinstance(value, str):
        return _whole(value) if value.strip() else None
    if isinstance(value, list) and all(
        isinstance(item, dict) and isinstance(item.get("role"), str) and isinstance(item.get("content"), str) for item in value
    ):
        return [{"role": item["role"], "content": _whole(item["content"])} for item in value] or None
    raise InvalidInput(f"The corpus {name!r} holds a value that is neither text nor a list of {{role, content}} messages.")


def _whole(text: str) -> str:
    """The text without halves of surrogate pairs, which texts of the web hold and no tokenizer takes: each becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if any("\ud800" <= each <= "\udfff" for each in text) else text
