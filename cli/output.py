"""What the subcommands share: progress on stderr, results on stdout, parameters from `--set key=value`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pydantic import BaseModel

from diffing_mcp.api.parameters import accepted
from diffing_mcp.api.progress import bar
from diffing_mcp.api.shown import printable
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.progress import Progress

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

P = TypeVar("P", bound=BaseModel)

# Columns this narrow are never wrapped.
_SHORT = 20
# Characters between columns.
_GAP = 3


def parse_params(params: type[P], settings: Sequence[str]) -> P:
    """Parameters from `key=value` texts, as `parse_settings` reads them.

    Raises:
        InvalidInput: a text without `=`, a key given twice, an unknown parameter or a value outside of its range.
    """
    return accepted(params, parse_settings(settings, params.model_fields))


def parse_settings(settings: Sequence[str], known: Iterable[str]) -> dict[str, Any]:
    """Values by key from `key=value` texts. Values are YAML, so `layers=[0.25, 0.5]` and `column=null` work.

    Raises:
        InvalidInput: a text without `=`, a key given twice, or a value that is no YAML; `known` is what there is.
    """
    import yaml

    values: dict[str, Any] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise InvalidInput(f"--set takes key=value, not {text!r}. Parameters: {', '.join(known)}.")
        if key in values:
            raise InvalidInput(f"--set {key} is given twice.")
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InvalidInput(f"--set {key}: {value!r} is not a YAML value.") from error
    return values


def print_json(value: Any) -> None:
    """A pydantic model, or anything JSON can hold, as indented JSON on stdout and nothing else there."""
    values = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    print(
        json.dumps(
            values,
            indent=2,
            # Escapes of our own where the characters cannot be printed: those of JSON.
            ensure_ascii=not takes_all_characters(sys.stdout),
            default=lambda item: item.model_dump(mode="json") if isinstance(item, BaseModel) else str(item),
        )
    )


def takes_all_characters(stream: Any) -> bool:
    """Whether a stream of text takes every character; a text in memory does."""
    encoding = getattr(stream, "encoding", None)
    return encoding is None or encoding.lower().replace("-", "").replace("_", "") in ("utf8", "utf16", "utf32")


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A plain table on stdout. Nothing is cut: in a terminal that is too narrow sentences are wrapped, while ids and
    numbers stay whole, if need be beyond its edge.
    """
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table

    cells = [["" if value is None else printable(str(value)) for value in row] for row in rows]
    table: Table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    narrowest = widest = 1
    for place, column in enumerate(columns):
        texts = [column, *(row[place] for row in cells)]
        length = max(map(cell_len, texts))
        word = max(cell_len(word) for text in texts for word in (text.split() or [""]))
        whole = length <= max(word, _SHORT)
        table.add_column(column, no_wrap=whole)
        narrowest += _GAP + (length if whole else word)
        widest += _GAP + length
    for row in cells:
        table.add_row(*row)
    width = max(narrowest, Console().width) if sys.stdout.isatty() else widest
    console = Console(width=width, highlight=False, markup=False)
    for line in console.render_lines(table, pad=False):
        if text := "".join(segment.text for segment in line).rstrip():
            print(text)


def print_csv(table: pd.DataFrame) -> None:
    """A table on stdout as CSV with a header."""
    print(table.to_csv(index=False), end="")


def print_plain(text: str) -> None:
    """One text on stdout, without control characters: results hold what models wrote."""
    print(printable(text))


def print_page(text: str) -> None:
    """One text that is a file by itself on stdout, to the letter."""
    print(text)


def check_one_form(as_json: bool, as_csv: bool) -> None:
    """Raise InvalidInput when JSON and CSV are asked for at once."""
    if as_json and as_csv:
        raise InvalidInput("Give --json or --csv, not both.")


class Tabular(Protocol):
    """An answer of the Python API that is also a table."""

    @property
    def result(self) -> BaseModel: ...

    def table(self) -> pd.DataFrame: ...

    def as_text(self) -> str: ...


def print_answer(answer: Tabular, as_json: bool, as_csv: bool) -> None:
    """An answer as JSON, as CSV, or as it reads."""
    if as_json:
        print_json(answer.result)
    elif as_csv:
        print_csv(answer.table())
    else:
        print_plain(answer.as_text())


def note(text: str) -> None:
    """One line for the person at the terminal, on stderr, so that stdout stays machine-readable."""
    print(text, file=sys.stderr)


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """A `Progress` drawn on stderr while the context lasts; without a terminal, one line every tenth of the work."""
    quiet_libraries()
    if not sys.stderr.isatty():
        yield _LineProgress(title)
        return
    with bar(title) as report:
        yield report


class _LineProgress:
    def __init__(self, title: str) -> None:
        self.title = title
        self.last = ""

    def __call__(self, done: float, total: float | None = None, message: str = "") -> None:
        step = f"{int(10 * done / total) * 10}%" if total else ""
        line = " ".join(part for part in (message or self.title, step) if part)
        if line != self.last:
            self.last = line
            note(line)


def quiet_libraries() -> None:
    """Keep the bars and advice of the model libraries out of the terminal; ours say what is going on."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")
