"""Max-activating examples of a run: the contexts in which a feature (a latent, a score at a layer) is highest. Reading
side; torch-free.

A run that has examples holds one `examples.sqlite`, written by `diffing_mcp.methods.examples.writer` and never changed
afterwards. Contexts are stored once and can be searched; every example has its score, its quantile bin and, where the
method gave them, the score of every token of its context.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.core.sqlite_schema import refuse_newer

FILE_NAME = "examples.sqlite"
SCORE_TYPE = np.dtype("<f4")
_FIRST_UNSPACED = "\u0e00"
"""Scripts from here on are written without spaces: a word of the query is no word of the index."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS features (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS contexts (
    id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, document TEXT NOT NULL, first_position INTEGER NOT NULL, tokens TEXT NOT NULL, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS examples (
    id INTEGER PRIMARY KEY, feature INTEGER NOT NULL REFERENCES features(id), bin INTEGER NOT NULL, score REAL NOT NULL,
    context INTEGER NOT NULL REFERENCES contexts(id), position INTEGER NOT NULL, side TEXT NOT NULL, scores BLOB, UNIQUE (feature, context, position));
CREATE INDEX IF NOT EXISTS examples_by_score ON examples (feature, score DESC, id);
CREATE INDEX IF NOT EXISTS examples_by_bin ON examples (feature, bin, score DESC, id);
CREATE INDEX IF NOT EXISTS examples_of_context ON examples (context);
CREATE VIRTUAL TABLE IF NOT EXISTS contexts_text USING fts5(text, content='contexts', content_rowid='id', \
tokenize="unicode61 remove_diacritics 2");
CREATE TRIGGER IF NOT EXISTS context_added AFTER INSERT ON contexts BEGIN
    INSERT INTO contexts_text(rowid, text) VALUES (new.id, new.text); END;
CREATE TRIGGER IF NOT EXISTS context_removed AFTER DELETE ON contexts BEGIN
    INSERT INTO contexts_text(contexts_text, rowid, text) VALUES ('delete', old.id, old.text); END;
"""  # noqa: E501


def statements(script: str) -> Iterator[str]:
    """The statements of a script one by one: `executescript` would commit the transaction under way."""
    statement = ""
    for line in script.splitlines():
        statement += f"{line}\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


MIGRATIONS = (tuple(statements(_SCHEMA)),)
"""From version to version, see `diffing_mcp.core.sqlite_schema`. Append; never change what is there. Files that were
written before they had versions have the schema of version 1."""


@dataclass(frozen=True)
class ExampleContext:
    """A stretch of text.

    Attributes:
        document: name of the document within the run's text.
        tokens: texts of its tokens.
        first_position: position of the first of them (0 = first content token; a prompt or BOS before it has negative
            positions).
    """

    document: str
    tokens: tuple[str, ...]
    first_position: int = 0


@dataclass(frozen=True)
class Example:
    """A place where a feature is high.

    Attributes:
        feature: its name, such as `latent42` or `norm_difference@14`.
        score: in the unit of the feature.
        context: the text around it.
        position: position of the token, in the context's counting.
        bin: quantile bin, 0 the lowest.
        side: `base`, `finetuned`, or empty where both models are meant.
        token_scores: [tokens of the context] float32, NaN where there is none; None: not known.
    """

    feature: str
    score: float
    context: ExampleContext
    position: int
    bin: int = 0
    side: str = ""
    token_scores: np.ndarray | None = None

    @property
    def place(self) -> int:
        """Index of the token among the context's tokens."""
        return self.position - self.context.first_position


@dataclass(frozen=True)
class FeatureSummary:
    """A feature and how many examples it has (that contain what was searched for)."""

    name: str
    examples: int
    max_score: float
    bins: tuple[int, ...]


@dataclass(frozen=True)
class Page:
    """Some rows, how many there are in all, and where to go on."""

    rows: Sequence[Any]
    total: int
    next_cursor: str | None


class ExampleReader:
    """Read-only access to a finished `examples.sqlite`; takes no locks and leaves no files beside it. Safe from any
    thread.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # Finished files never change, which is what `immutable` promises; so they can be read on read-only and network
        # disks.
        connection = sqlite3.connect(f"{self._path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
        try:
            refuse_newer(connection, MIGRATIONS, "This file of examples")
            yield connection
        except sqlite3.DatabaseError as error:
            raise InvalidInput(
                "The examples of this run cannot be read; delete the run and run the method again."
            ) from error
        finally:
            connection.close()

    def features(self, search: str | None = None, cursor: str | None = None, limit: int = 20) -> Page:
        """Features (`FeatureSummary`) in the order in which the method wrote them; with `search` those with an example
        that contains it.

        Raises:
            InvalidInput: a cursor of another question.
        """
        question = ["features", search]
        [after] = _read_cursor(cursor, question, [-1])
        with self._open() as connection:
            condition, values = _search(search)
            grouped = (
                "SELECT features.id, features.name, count(*), max(score), group_concat(DISTINCT bin) FROM examples "
                f"JOIN features ON features.id = feature WHERE 1 {condition} GROUP BY features.id"
            )
            [total] = connection.execute(f"SELECT count(*) FROM ({grouped})", values).fetchone()
            rows = connection.execute(
                f"{grouped} HAVING features.id > ? ORDER BY features.id LIMIT ?", [*values, after, limit + 1]
            ).fetchall()
        found = [
            FeatureSummary(name, count, highest, tuple(sorted(int(part) for part in str(bins).split(","))))
            for _, name, count, highest, bins in rows
        ]
        return Page(found[:limit], total, _cursor(question, [rows[limit - 1][0]]) if len(rows) > limit else None)

    def examples(
        self,
        feature: str,
        bin: int | None = None,
        search: str | None = None,
        cursor: str | None = None,
        limit: int = 20,
    ) -> Page:
        """Examples (`Example`) of a feature, highest score first (of one bin; that contain every word of `search`).

        Raises:
            UnknownName: no such feature.
            InvalidInput: a cursor of another question.
        """
        question = ["examples", feature, bin, search]
        score, identifier = _read_cursor(cursor, question, [None, -1])
        with self._open() as connection:
            number = self._feature(connection, feature)
            condition, found = _search(search)
            values: list[Any] = [number, *found]
            if bin is not None:
                condition, values = f"{condition} AND bin = ?", [*values, bin]
            [total] = connection.execute(
                f"SELECT count(*) FROM examples WHERE feature = ? {condition}", values
            ).fetchone()
            if score is not None:
                condition, values = (
                    f"{condition} AND (score < ? OR (score = ? AND examples.id > ?))",
                    [*values, score, score, identifier],
                )
            rows = connection.execute(
                (
                    "SELECT examples.id, score, position, bin, side, scores, document, first_position, tokens FROM "
                    f"examples JOIN contexts ON contexts.id = context WHERE feature = ? {condition} ORDER BY score "
                    "DESC, examples.id LIMIT ?"
                ),
                [*values, limit + 1],
            ).fetchall()
        return Page(
            [_example(feature, row[1:]) for row in rows[:limit]],
            total,
            _cursor(question, [*rows[limit - 1][1::-1]]) if len(rows) > limit else None,
        )

    def _feature(self, connection: sqlite3.Connection, name: str) -> int:
        row = connection.execute("SELECT id FROM features WHERE name = ?", [name]).fetchone()
        if row is not None:
            return int(row[0])
        known = [other for (other,) in connection.execute("SELECT name FROM features ORDER BY id LIMIT 20000")]
        close = difflib.get_close_matches(name, known, n=5) or known[:10]
        raise UnknownName(
            f"There are no examples of {name!r}. Features with examples: "
            f"{', '.join(close) or 'none'}{', ...' if len(known) > 10 else ''}."
        )


def _example(feature: str, row: Sequence[Any]) -> Example:
    score, position, bin, side, scores, document, first_position, tokens = row
    return Example(
        feature=feature,
        score=score,
        context=ExampleContext(document, tuple(json.loads(tokens)), first_position),
        position=position,
        bin=bin,
        side=side,
        token_scores=None if scores is None else np.frombuffer(scores, dtype=SCORE_TYPE),
    )


def _search(text: str | None) -> tuple[str, list[str]]:
    """A condition on examples, with its values. Words are looked up in the index by their beginning; what has no words
    is looked for as it stands.
    """
    cleaned = (text or "").encode("utf-8", "ignore").decode().replace("\0", " ").strip()
    if not cleaned:
        return "", []
    words = "".join(character if character.isalnum() else " " for character in cleaned).split()
    if not words or any(character >= _FIRST_UNSPACED for character in cleaned):
        return "AND context IN (SELECT id FROM contexts WHERE instr(lower(text), lower(?)) > 0)", [cleaned]
    # Quoted words are no operators of the query language.
    return "AND context IN (SELECT rowid FROM contexts_text WHERE contexts_text MATCH ?)", [
        " ".join(f'"{word}"*' for word in words)
    ]


def _cursor(question: list[Any], place: list[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps([_digest(question), *place]).encode()).decode().rstrip("=")


def _read_cursor(cursor: str | None, question: list[Any], start: list[Any]) -> list[Any]:
    if cursor is None:
        return start
    try:
        digest, *place = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, TypeError, binascii.Error, RecursionError):
        digest, place = None, []
    numbers = all(
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63 for value in place
    )
    if digest != _digest(question) or len(place) != len(start) or not numbers:
        raise InvalidInput(
            "This cursor belongs to another question: give it with the same feature, bin and search, or leave it out "
            "to start again."
        )
    return place


def _digest(question: list[Any]) -> str:
    return hashlib.sha256(json.dumps(question).encode()).hexdigest()[:12]
