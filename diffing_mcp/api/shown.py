"""What results look like in a terminal and in a notebook. Texts of models are untrusted: they are data on either."""

from __future__ import annotations

import html
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Generic, TypeVar

from pydantic import BaseModel

from diffing_mcp.methods.results import compact_text

M = TypeVar("M", bound=BaseModel)


class Shown(ABC):
    """Something that shows itself as text, in a notebook as preformatted text under a heading."""

    @abstractmethod
    def heading(self) -> str:
        """One line that names it."""

    @abstractmethod
    def as_text(self) -> str:
        """What it says, without the heading."""

    def __repr__(self) -> str:
        return printable(f"{self.heading()}\n{self.as_text()}")

    def _repr_html_(self) -> str:
        return (
            f"<div><b>{html.escape(self.heading())}</b>"
            f'<pre style="white-space: pre-wrap">{html.escape(printable(self.as_text()))}</pre></div>'
        )


class ShownResult(Shown, Generic[M]):
    """A typed answer: `result` holds its fields."""

    def __init__(self, title: str, result: M) -> None:
        self.title = title
        self.result = result

    def heading(self) -> str:
        """What was asked of what."""
        return self.title

    def as_text(self) -> str:
        """The result as text."""
        return text_of(self.result)


def text_of(result: BaseModel) -> str:
    """A result as text: in its own words where it has them."""
    return str(result.as_text()) if hasattr(result, "as_text") else compact_text(result.model_dump(mode="json"))


def indented(text: str) -> str:
    """A model's text with its later lines further in than the labels before texts: else a line of it such as
    `finetuned: ...` would read as the other model's answer.
    """
    return text.replace("\n", "\n    ")


def printable(text: str) -> str:
    """A text without control characters: those of a terminal could move its cursor or change what stands above. Spaces
    of all widths stay, and what joins letters or keeps them apart in Persian, Hindi and emoji.
    """
    return "".join(_printable(text))


def _printable(text: str) -> Iterable[str]:
    for character in text:
        kept = character.isprintable() or character in _HARMLESS or unicodedata.category(character) == "Zs"
        yield character if kept else repr(character)[1:-1]


_HARMLESS = "\n\t\u200c\u200d"
