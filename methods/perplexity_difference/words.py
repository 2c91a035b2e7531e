"""Words over-represented in one model's completions. NumPy-free and torch-free: a few hundred short texts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from methods.perplexity_difference.rows import DistinctiveWord
from methods.words import is_content_word, words_of

NULL_SURPRISE = 2.5
"""z (log odds over its standard error) from which on a word counts as strong."""
LEAST_PREFILLS = 3
"""A strong word was written after at least so many different prefills: repetition within one text shows nothing."""
_SHRINK = 0.5


def distinctive_words(finetuned: Sequence[tuple[str, str]], base: Sequence[tuple[str, str]]) -> list[DistinctiveWord]:
    """Content words by z of their shrunken log odds ratio of being in a completion, finetuned against base; only those with a positive one.

    Counts completions, not occurrences (small models repeat themselves), and never words that their own prefill already held. With counts a of n
    and b of m completions: log odds ratio of (a + 1/2, n - a + 1/2) to (b + 1/2, m - b + 1/2), with Woolf's standard error (Haldane-Anscombe).

    Args:
        finetuned, base: (prefill, completion) pairs.
    """
    counts = [_count(finetuned), _count(base)]
    rows = []
    for word, prefills in counts[0].items():
        here, there = len(prefills), len(counts[1].get(word, ()))
        log_odds, error = _log_odds(here, len(finetuned), there, len(base))
        if log_odds > 0:
            z = log_odds / error
            distinct = len(set(prefills))
            strong = z >= NULL_SURPRISE and distinct >= LEAST_PREFILLS
            rows.append(
                DistinctiveWord(word=word, finetuned=here, base=there, prefills=distinct, log_odds=round(log_odds, 3), z=round(z, 3), strong=strong)
            )
    return sorted(rows, key=lambda row: (not row.strong, -row.z, row.word))


def _count(texts: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """Word -> the prefill of each completion that contains it."""
    found: dict[str, list[str]] = defaultdict(list)
    for prefill, completion in texts:
        given = set(words_of(prefill))
        for word in sorted(set(words_of(completion)) - given):
            if is_content_word(word):
                found[word].append(prefill)
    return found


def _log_odds(here: int, here_of: int, there: int, there_of: int) -> tuple[float, float]:
    cells = (here + _SHRINK, here_of - here + _SHRINK, there + _SHRINK, there_of - there + _SHRINK)
    return math.log(cells[0] * cells[3] / (cells[1] * cells[2])), math.sqrt(sum(1 / cell for cell in cells))
