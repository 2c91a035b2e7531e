"""Texts made shorter, and whole."""

from __future__ import annotations

import re


def clip(text: str, characters: int) -> tuple[str, bool]:
    """The beginning of a text, and whether something was cut off."""
    return (text, False) if len(text) <= characters else (text[: max(0, characters - 1)] + "…", True)


def whole(text: str) -> str:
    """The text without halves of surrogate pairs, which texts of the web and of language models hold and neither files
    nor tokenizers take: each becomes U+FFFD.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if SURROGATES.search(text) else text


SURROGATES = re.compile("[\ud800-\udfff]")


def fenced(text: str) -> str:
    """Text of a model under study between ⟦ ⟧, on one line: such brackets within it become others, since what stands
    behind the fence would read as ours, and control characters, which steer terminals, become spaces.
    """
    return f"⟦{' '.join(text.translate(_WITHIN).split())}⟧"


_WITHIN = {**dict.fromkeys((*range(32), *range(127, 160)), " "), ord("⟦"): "[", ord("⟧"): "]"}


def first_sentence(text: str) -> str:
    """What stands before the first full stop that ends a sentence, on one line."""
    return _SENTENCE_END.split(" ".join(text.split()), maxsplit=1)[0]


_SENTENCE_END = re.compile(r"(?<=[.!?]) (?=[A-Z])")
