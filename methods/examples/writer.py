"""Writing max-activating examples into a run's `examples.sqlite`: any number of processes may append to it at once.
Torch-free.

Appending is one transaction: examples that are there are left alone, every (feature, bin) is cut to its highest
`per_bin`, contexts that no example needs any more go.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffing_mcp.core.atomic_files import sync_folder
from diffing_mcp.core.errors import InvalidInput, OutOfRoom
from diffing_mcp.core.sqlite_schema import upgrade, write_transaction
from diffing_mcp.methods.examples.reader import MIGRATIONS, SCORE_TYPE, Example, ExampleContext, statements
from diffing_mcp.methods.examples.top import Found

if TYPE_CHECKING:
    from diffing_mcp.preprocessing.activations import PairedActivations
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus

_AT_ONCE = 5000
"""Examples of one transaction."""
_BUSY_SECONDS = 120
_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE}

_TRIM = """
CREATE TEMP TABLE dropped AS SELECT id, context FROM (
    SELECT id, context, row_number() OVER (PARTITION BY feature, bin ORDER BY score DESC, id) AS place FROM examples
    WHERE feature IN (SELECT id FROM temp.touched)) WHERE place > (SELECT value FROM about WHERE name = 'per_bin');
DELETE FROM examples WHERE id IN (SELECT id FROM temp.dropped);
DELETE FROM contexts WHERE id IN (SELECT context FROM temp.dropped) AND NOT EXISTS (SELECT 1 FROM examples WHERE \
context = contexts.id);
DROP TABLE temp.dropped;
"""


class ExampleWriter:
    """Appends examples to the file at `path`, which is made when it is not there. Other processes may open a writer on
    the same path.

    Args:
        per_bin: examples kept of every feature and bin; all writers of a file must say the same.
    """

    def __init__(self, path: Path, per_bin: int = 20) -> None:
        self.path = path
        self.per_bin = per_bin
        with self._open() as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            upgrade(connection, MIGRATIONS, f"The file of examples {path}")
            with write_transaction(connection):
                connection.execute("INSERT OR IGNORE INTO about VALUES ('per_bin', ?)", [per_bin])
            [known] = connection.execute("SELECT value FROM about WHERE name = 'per_bin'").fetchone()
        if known != per_bin:
            raise InvalidInput(f"These examples keep {known} in each bin, not {per_bin}.")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = NORMAL")
            yield connection
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode not in _FULL:
                raise
            raise OutOfRoom(
                "There is not enough disk space for the examples of the run. Free space or delete runs, then call "
                "again."
            ) from error
        finally:
            connection.close()

    def append(self, examples: Iterable[Example]) -> None:
        """Add examples; those whose feature, context and position are there already are left out, those below the top
        are dropped.

        Raises:
            InvalidInput: token scores of another length than the context, a place outside of it, or a score that is not
                finite.
        """
        rest = iter(examples)
        with self._open() as connection:
            while part := list(islice(rest, _AT_ONCE)):
                for example in part:
                    _check(example)
                with write_transaction(connection):
                    self._add(connection, part)

    def _add(self, connection: sqlite3.Connection, examples: Sequence[Example]) -> None:
        connection.execute("CREATE TEMP TABLE IF NOT EXISTS touched (id INTEGER PRIMARY KEY)")
        connection.execute("DELETE FROM temp.touched")
        features: dict[str, int] = {}
        contexts: dict[ExampleContext, int] = {}
        for example in examples:
            if example.feature not in features:
                connection.execute("INSERT OR IGNORE INTO features (name) VALUES (?)", [example.feature])
                [features[example.feature]] = connection.execute(
                    "SELECT id FROM features WHERE name = ?", [example.feature]
                ).fetchone()
            if example.context not in contexts:
                contexts[example.context] = _context_id(connection, example.context)
        connection.executemany("INSERT INTO temp.touched VALUES (?)", [[number] for number in features.values()])
        connection.executemany(
            (
                "INSERT OR IGNORE INTO examples (feature, bin, score, context, position, side, scores) VALUES (?, ?, "
                "?, ?, ?, ?, ?)"
            ),
            [
                (
                    features[example.feature],
                    int(example.bin),
                    float(example.score),
                    contexts[example.context],
                    int(example.position),
                    example.side,
                    None
                    if example.token_scores is None
                    else np.asarray(example.token_scores, dtype=SCORE_TYPE).tobytes(),
                )
                for example in examples
            ],
        )
        for statement in statements(_TRIM):
            connection.execute(statement)
        # A context that came with examples which were all there, or were dropped from a bin that had no room, may be
        # used by none.
        connection.executemany(
            "DELETE FROM contexts WHERE id = ? AND NOT EXISTS (SELECT 1 FROM examples WHERE context = contexts.id)",
            [[number] for number in contexts.values()],
        )

    def finish(self) -> int:
        """Make the file complete in itself and synced, ready to be read by
        `diffing_mcp.methods.examples.reader.ExampleReader`; the number of examples.
        """
        with self._open() as connection:
            connection.execute("INSERT INTO contexts_text(contexts_text) VALUES ('optimize')")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.execute("PRAGMA journal_mode = DELETE")
            [count] = connection.execute("SELECT count(*) FROM examples").fetchone()
        sync_folder(self.path.parent)
        return int(count)


def _context_id(connection: sqlite3.Connection, context: ExampleContext) -> int:
    tokens = json.dumps(context.tokens)
    digest = hashlib.sha256(json.dumps([context.document, context.first_position, tokens]).encode()).digest()[:16]
    text = "".join(context.tokens).encode("utf-8", "replace").decode()  # lone surrogates cannot be stored
    connection.execute(
        "INSERT OR IGNORE INTO contexts (digest, document, first_position, tokens, text) VALUES (?, ?, ?, ?, ?)",
        [digest, context.document, int(context.first_position), tokens, text],
    )
    [number] = connection.execute("SELECT id FROM contexts WHERE digest = ?", [digest]).fetchone()
    return int(number)


def _check(example: Example) -> None:
    size = len(example.context.tokens)
    if not np.isfinite(example.score) or not 0 <= example.place < size:
        raise InvalidInput(
            f"An example of {example.feature} has the score {example.score} at token {example.place} of a context of "
            f"{size}."
        )
    if example.token_scores is not None and np.shape(example.token_scores) != (size,):
        raise InvalidInput(
            f"An example of {example.feature} has {np.shape(example.token_scores)} token scores in a context of {size} "
            "tokens."
        )


def examples_of(
    found: Found,
    name: Callable[[int], str],
    context: Callable[[int], ExampleContext],
    token_scores: Callable[[int, int], np.ndarray | None] | None = None,
    side: str = "",
) -> Iterator[Example]:
    """What `TopExamples` found, as examples.

    Args:
        name: feature index -> its name.
        context: sample -> its text.
        token_scores: (feature, sample) -> [tokens of the context] scores, NaN where there are none.
    """
    contexts: dict[int, ExampleContext] = {}
    rows = zip(
        *(column.tolist() for column in (found.features, found.bins, found.scores, found.samples, found.positions)),
        strict=True,
    )
    for feature, bin, score, sample, position in rows:
        if sample not in contexts:
            contexts[sample] = context(sample)
        scores = token_scores(feature, sample) if token_scores else None
        yield Example(name(feature), score, contexts[sample], position, bin, side, scores)


def corpus_contexts(corpus: TokenizedCorpus, tokenizer: Any) -> Callable[[int], ExampleContext]:
    """Contexts of a corpus's samples, whole: a chat's prompt and a BOS have negative positions."""
    from diffing_mcp.methods.texts.words import token_texts

    return lambda sample: ExampleContext(
        str(sample),
        tuple(token_texts(tokenizer, corpus.ids[sample])),
        corpus.first_position - corpus.content_start[sample],
    )


def activation_contexts(rows: PairedActivations, tokenizer: Any) -> Callable[[int], ExampleContext]:
    """Contexts of the samples of collected activations, from their first kept token."""
    from diffing_mcp.methods.texts.words import token_texts

    return lambda sample: ExampleContext(
        str(sample), tuple(token_texts(tokenizer, rows.sample_ids(sample))), rows.first_position
    )
