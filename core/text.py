"""Texts made shorter."""

from __future__ import annotations


def clip(text: str, characters: int) -> tuple[str, bool]:
    """The beginning of a text, and whether something was cut off."""
    return (text, False) if len(text) <= characters else (text[: max(0, characters - 1)] + "…", True)
