"""What is counted in an answer: a pattern, or words. Torch-free.

Patterns come from agents, so the search is bounded in time: a pattern that backtracks for ever is an error, not a
server that hangs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import regex

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.words import UNSPACED, stem, word_spans

SEARCH_SECONDS = 1.0
"""For all texts that one finder searches, of processor time. A sound pattern reads thousands of answers in less."""
_ENDLESS = regex.compile(rf"[{UNSPACED}\p{{Hangul}}]")
"""Scripts without spaces between words (Thai, Chinese, Japanese), or with particles on them (Korean)."""

Finder = Callable[[str], tuple[int, int] | None]
"""Where in a text the first thing counted stands: (start, end) in characters, None when it is not there."""


def pattern_finder(pattern: str) -> Finder:
    """Finds a regular expression, case-insensitively (`(?-i:...)` inside switches that off).

    Raises:
        InvalidInput: it is none, at once; it takes too long, when it is used.
    """
    try:
        compiled = regex.compile(pattern, regex.IGNORECASE | regex.MULTILINE)
    except (regex.error, RecursionError, OverflowError) as error:
        raise InvalidInput(f"the pattern {pattern!r} is no regular expression of Python: {error}") from error

    left = SEARCH_SECONDS

    def find(text: str) -> tuple[int, int] | None:
        nonlocal left
        started = time.thread_time()
        try:
            found = compiled.search(text, timeout=max(left, 1e-3))
        except TimeoutError:
            raise InvalidInput(
                f"the pattern {pattern!r} takes too long on these answers: nested repetitions such as (a+)+ backtrack "
                "without end. Write it without them, or give `words`."
            ) from None
        left -= time.thread_time() - started
        return found.span() if found else None

    return find


def word_finder(words: Sequence[str]) -> Finder:
    """Finds any of these words or phrases: whole words whatever their case and simple ending (`bake` finds `Baked`); in
    scripts without spaces, the characters themselves.

    Raises:
        InvalidInput: one of them has neither letters nor digits.
    """
    phrases = [(word, [form for _, _, form in _forms(word)]) for word in words]
    if empty := [word for word, forms in phrases if not forms]:
        raise InvalidInput(f"{empty[0]!r} has neither letters nor digits; count signs with `pattern`")
    unspaced = [_folded(word) for word in words if _ENDLESS.search(word)]

    def find(text: str) -> tuple[int, int] | None:
        forms = _forms(text)
        spans = [
            (forms[at][0], forms[at + len(phrase) - 1][1])
            for _, phrase in phrases
            for at in range(len(forms) - len(phrase) + 1)
            if [form for _, _, form in forms[at : at + len(phrase)]] == phrase
        ]
        lower = _folded(text)
        spans += [(at, at + len(word)) for word in unspaced if (at := lower.find(word)) >= 0]
        return min(spans, default=None)

    return find


def _forms(text: str) -> list[tuple[int, int, str]]:
    """Start, end and stem of every word and number of a text."""
    return [(start, end, stem(text[start:end].casefold())) for start, end in word_spans(text, numbers=True)]


def _folded(text: str) -> str:
    """Without case; each character stays one, so that places in it are places in the text."""
    return "".join(folded if len(folded := character.casefold()) == 1 else character for character in text)
