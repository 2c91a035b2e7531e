"""What the subcommands share: progress on stderr, results on stdout, parameters from `--set key=value`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.progress import Progress
from diffing_mcp.core.validation_messages import complaints

if TYPE_CHECKING:
    from rich.table import Table

P = TypeVar("P", bound=BaseModel)


def parse_params(params: type[P], settings: Sequence[str]) -> P:
    """Parameters from `key=value` texts. Values are YAML, so `layers=[0.25, 0.5]` and `column=null` work.

    A single value for a parameter that takes a list stands for a list of one: `layers=0.5`.

    Raises:
        InvalidInput: a text without `=`, a key given twice, an unknown parameter or a value outside of its range.
    """
    import yaml

    values: dict[str, Any] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise InvalidInput(f"--set takes key=value, not {text!r}. Parameters: {', '.join(params.model_fields)}.")
        if key in values:
            raise InvalidInput(f"--set {key} is given twice.")
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InvalidInput(f"--set {key}: {value!r} is not a YAML value.") from error
    return validated(params, values)


def validated(params: type[P], values: dict[str, Any]) -> P:
    """`params(**values)`, with every complaint in one readable line.

    Raises:
        InvalidInput: what is wrong with which parameter, and what there is.
    """
    try:
        return params.model_validate(values)
    except ValidationError as first:
        # Only what was refused as it is gets wrapped, so that a parameter that takes one value keeps its own complaint.
        listed = {
            str(error["loc"][0])
            for error in first.errors()
            if error["loc"] and error["type"] in {"list_type", "tuple_type"}
        }
        try:
            if not listed:
                raise first
            return params.model_validate({key: [value] if key in listed else value for key, value in values.items()})
        except ValidationError as error:
            fields = params.model_fields
            raise InvalidInput(f"{complaints(error, fields)}. Parameters: {', '.join(fields)}.") from error


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
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    quiet_libraries()
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _LineProgress(title)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=None)

        def report(done: float, total: float | None = None, message: str = "") -> None:
            bar.update(task, completed=done, total=total, description=message or title)

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
