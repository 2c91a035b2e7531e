"""Choosing among the stored rows of a run. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from diffing_mcp.core.errors import UnknownName

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.files import RunRecord

Row = TypeVar("Row", bound=Mapping[str, Any])
T = TypeVar("T")


def matching(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """The rows that have the asked values in these columns; None: whatever they have."""
    asked = {column: value for column, value in wanted.items() if value is not None}
    return [row for row in rows if all(row[column] == value for column, value in asked.items())]


def near(rows: Sequence[Row], column: str, value: float | None) -> list[Row]:
    """The rows whose number in a column is the asked one (0.01 near); None: all."""
    return [row for row in rows if value is None or abs(row[column] - value) <= 0.01]


def containing(rows: Sequence[Row], columns: Sequence[str], text: str) -> list[Row]:
    """The rows that hold a text, in any case, in one of the columns: also where those hold lists or objects."""
    wanted = text.casefold()
    return [row for row in rows if not wanted or any(_holds(row[column], wanted) for column in columns)]


def _holds(value: Any, wanted: str) -> bool:
    if isinstance(value, str):
        return wanted in value.casefold()
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return any(_holds(item, wanted) for item in inner)


def highest_first(rows: Sequence[Row], column: str) -> list[Row]:
    """The rows by falling number, those without one last."""
    return sorted(rows, key=lambda row: (row[column] is None, -(row[column] or 0.0)))


def grouped(rows: Sequence[Row], column: str) -> dict[Any, list[Row]]:
    """The rows by their value in a column, in the order in which the values come."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[column], []).append(row)
    return groups


def held(record: RunRecord, what: str, wanted: T | None, known: Sequence[T]) -> T:
    """The wanted layer, position or scale of a run; None: the first that it has.

    Raises:
        UnknownName: the run does not hold it.
    """
    if wanted is None and known:
        return known[0]
    if wanted is None or wanted not in known:
        listed = ", ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in known) or "none"
        asked = "" if wanted is None else f" {wanted:g}" if isinstance(wanted, float) else f" {wanted}"
        more = what == "layer" and asked and known and "layers" in record.manifest.params
        again = f" Run the method again with layers=[{wanted}]." if more else ""
        raise UnknownName(f"Run {record.id} holds no {what}{asked}; {what}s: {listed}.{again}")
    return wanted


def layers_of(record: RunRecord) -> list[int]:
    """The absolute layers of a run that stores them as the array `layers`."""
    return [int(layer) for layer in record.array("layers")]
