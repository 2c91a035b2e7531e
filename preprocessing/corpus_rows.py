"""Rows of corpora as documents: which columns hold the text, the forms that chats come in, and what is left out,
counted by reason. Torch-free.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from diffing_mcp.core.text import SURROGATES, whole

Message = dict[str, str]
"""{"role": "system" | "user" | "assistant" or a name that no template is sure to know, "content": text}"""
Document = str | list[Message]

FORMS = (
    ("text",),
    ("messages",),
    ("conversations",),
    ("prompt", "completion"),
    ("instruction", "input", "output"),
    ("instruction", "output"),
    ("prompt", "response"),
    ("question", "answer"),
)
"""Columns that are read when none is named: the first of these that a row has in full. Several are what a user says
and, last, the answer.
"""

_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "developer": "system"}
_REASON_CHARACTERS = 300
_REASONS = 8
_PLACES = 3


class BadRow(Exception):
    """A row that is no document. The message says why, in few different words for many rows: they are counted by it."""


class Dropped:
    """What of a corpus was left out: how much for each reason, and the numbers of the first.

    Args:
        source: the file or corpus, for the reader.
        unit: what is numbered: "line", "row" or "document".
    """

    def __init__(self, source: str = "", unit: str = "document") -> None:
        self.source = source
        self.unit = unit
        self._counts: dict[str, int] = {}
        self._places: dict[str, list[int]] = {}

    @property
    def count(self) -> int:
        """Rows and documents left out."""
        return sum(self._counts.values())

    def add(self, reason: str, place: int | None = None, count: int = 1) -> None:
        """`count` more for this reason; beyond a few reasons they are counted together, so that reasons which quote a
        row do no harm.
        """
        reason = whole(" ".join(reason.split()))[:_REASON_CHARACTERS].rstrip(".")
        if reason not in self._counts and len(self._counts) >= _REASONS:
            reason = "other reasons"
        self._counts[reason] = self._counts.get(reason, 0) + count
        places = self._places.setdefault(reason, [])
        if place is not None and len(places) < _PLACES:
            places.append(place)

    def and_then(self, later: Dropped) -> Dropped:
        """Both, a new one."""
        both = Dropped(self.source, self.unit)
        for part in (self, later):
            for reason, count in part._counts.items():
                both.add(reason, None, count)
                kept = both._places.get(reason, [])
                kept += part._places[reason][: _PLACES - len(kept)]
        return both

    @property
    def notes(self) -> dict[str, Any]:
        """What a run's manifest says of it."""
        return {"dropped": self.count, **({"dropped_rows": "; ".join(self.lines())} if self.count else {})}

    def lines(self) -> list[str]:
        """One line a reason, the most frequent first: `3 x not JSON (a.jsonl, lines 2, 7, 9)`."""
        lines = []
        for reason, count in sorted(self._counts.items(), key=lambda item: -item[1]):
            places = ", ".join(map(str, self._places[reason]))
            more = ", ..." if count > len(self._places[reason]) else ""
            unit = self.unit if count == 1 else f"{self.unit}s"
            lines.append(f"{count} x {reason}" + (f" ({self.source}, {unit} {places}{more})" if places else ""))
        return lines


def columns_of(names: Iterable[str], column: str | None) -> tuple[str, ...]:
    """The columns that make a document: the named one, or the first of `FORMS` that is there.

    Raises:
        BadRow: none is; it names those that are.
    """
    present = list(names)
    for columns in ((column,),) if column else FORMS:
        if all(name in present for name in columns):
            return columns
    wanted = repr(column) if column else "text, messages or another that is known"
    raise BadRow(f"no column {wanted}; columns: {', '.join(present[:20]) or 'none'}")


def row_document(row: Mapping[str, Any], column: str | None) -> Document | None:
    """The document of a row, None when it is empty. Raises BadRow."""
    *asked, answer = columns_of(row, column)
    if not asked:
        return document(row[answer])
    values = [row[name] for name in (*asked, answer)]
    if not any(values):
        return None
    question = _turns(row[asked[0]], asked[0], "user")
    if context := [row[name] for name in asked[1:] if row[name]]:  # Alpaca's `input`, often empty
        more = _turns(context[0], asked[1], "user")
        question[-1] = {**question[-1], "content": f"{question[-1]['content']}\n\n{more[0]['content']}"}
    return question + _turns(row[answer], answer, "assistant")


def json_document(line: str, column: str | None) -> Document | None:
    """The document of a line of JSON. Raises BadRow."""
    if SURROGATES.search(line):
        raise BadRow("not UTF-8")
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadRow(f"not JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # a number of very many digits, brackets without end
        raise BadRow("JSON with a number or a depth beyond what is read") from error
    if not isinstance(row, dict):
        raise BadRow(f'{_kind(row)}, not a JSON object such as {{"text": "..."}}')
    return row_document(row, column)


def plain_document(text: str) -> Document | None:
    """A document of a plain text file that was read with `errors="surrogateescape"`. Raises BadRow."""
    if SURROGATES.search(text):
        raise BadRow("not UTF-8")
    return text if text.strip() else None


def document(value: Any) -> Document | None:
    """A value as text or messages; None when it is empty. Raises BadRow."""
    if value is None:
        return None
    if isinstance(value, str):
        return whole(value) if value.strip() else None
    if isinstance(value, list):
        return _messages(value) or None
    raise BadRow(f"neither text nor a list of messages, but {_kind(value)}")


def characters_of(document: Document) -> int:
    """How long a document is, all its messages together."""
    return len(document) if isinstance(document, str) else sum(len(message["content"]) for message in document)


def _turns(value: Any, name: str, role: str) -> list[Message]:
    if isinstance(value, list) and value:
        return _messages(value)
    if isinstance(value, str) and value.strip():
        return [{"role": role, "content": whole(value)}]
    raise BadRow(f"the column {name!r} holds {_kind(value)}, not text")


def _messages(items: list[Any]) -> list[Message]:
    """Messages of {role, content} or, as in ShareGPT, {from, value}; contents are texts or lists of parts, of which the
    texts count.
    """
    found = []
    for item in items:
        if not isinstance(item, dict):
            raise BadRow(f"neither text nor a list of messages, but a list with {_kind(item)}")
        role = item.get("role", item.get("from"))
        if not isinstance(role, str):
            raise BadRow("a message without a role")
        role = _ROLES.get(role, whole(role))
        content = item.get("content", item.get("value"))
        if isinstance(content, list):
            content = "\n".join(filter(None, map(_part, content))) or None
        if not isinstance(content, str):
            raise BadRow(f"a message of {role!r} whose content is {_kind(content)}, not text")
        found.append({"role": role, "content": whole(content)})
    return found


def _part(part: Any) -> str:
    """The text of one part of a content list; "" for images, calls of tools and what else there is."""
    if isinstance(part, dict):
        part = part.get("text") if part.get("type", "text") == "text" else ""
    return part if isinstance(part, str) else ""


def _kind(value: Any) -> str:
    if value is None or value in ("", []):
        return "nothing"
    if isinstance(value, str) and not value.strip():
        return "blank text"
    kinds = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
        bytes: "bytes",
    }
    return kinds.get(type(value), f"a {type(value).__name__}")
