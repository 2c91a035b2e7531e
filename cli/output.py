"""What the subcommands share: progress on stderr, results on stdout, parameters from `--set key=value`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from diffing_mcp.api.parameters import accepted
from diffing_mcp.api.progress import bar
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.progress import Progress

if TYPE_CHECKING:
    from rich.table import Table

P = TypeVar("P", bound=BaseModel)


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
            ensure_ascii=False,
            default=lambda item: item.model_dump(mode="json") if isinstance(item, BaseModel) else str(item),
        )
    )


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A plain table on stdout, as wide as its content needs when stdout is no terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table: Table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    width = None if sys.stdout.isatty() else 400
    Console(width=width, highlight=False, markup=False).print(table)


def print_plain(text: str) -> None:
    """One text on stdout, as it is."""
    print(text)


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
