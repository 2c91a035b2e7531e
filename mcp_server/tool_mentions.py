"""Sentences of ours name tools to call next. A caller whose token lacks one is not told to call it."""

from __future__ import annotations

import re
from collections.abc import Collection

_BETWEEN_SENTENCES = re.compile(r"(?<=[.!?;]) +")


def without_missing(text: str, missing: Collection[str], keep: int = 0) -> str:
    """A text of ours without its sentences that name a tool which is `missing`, but for the first `keep` of them, which
    say what is wrong. Names of one word (`facts`, `steering`) are words of the language too, so only those that are
    called, as `facts(`, count.
    """
    if not missing or not text:
        return text
    names = "|".join(re.escape(name) + ("" if "_" in name else r"(?=\()") for name in missing)
    named = re.compile(rf"(?<![\w/'\"-])(?:{names})(?![\w-])")
    kept: list[str] = []
    for place, sentence in enumerate(_BETWEEN_SENTENCES.split(text)):
        if place < keep or not named.search(sentence):
            kept.append(sentence)
        elif kept and kept[-1].endswith(";"):  # what stood before it ends the sentence now
            kept[-1] = f"{kept[-1][:-1]}."
    return " ".join(kept)
