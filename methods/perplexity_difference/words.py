"""Words over-represented in one model's completions. NumPy-free and torch-free: a few hundred short texts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from diffing_mcp.methods.perplexity_difference.rows import DistinctiveWord
from diffing_mcp.methods.texts.words import is_content_word, words_of

NULL_SURPRISE = 3.0
"""Surprise (-log10 of Fisher's exact p) from which on a word counts as strong: about one of a thousand words of equal
models reaches it.
"""
LEAST_PREFILLS = 3
"""A strong word was written after at least so many different prefills: repetition within one text shows nothing."""
_SHRINK = 0.5


def distinctive_words(finetuned: Sequence[tuple[str, str]], base: Sequence[tuple[str, str]]) -> list[DistinctiveWord]:
    """Content words that are in more completions of the finetuned model than of the base, most surprising first.

    Counts completions, not occurrences (small models repeat themselves), and never words that their own prefill already
    held. Log odds are shrunken by half a count a cell (Haldane-Anscombe); the surprise is -log10 p of Fisher's exact
    test, one-sided.

    Args:
        finetuned, base: (prefill, completion) pairs.
    """
    counts = [_count(finetuned), _count(base)]
    rows = []
    for word, prefills in counts[0].items():
        here, there = len(prefills), len(counts[1].get(word, ()))
        log_odds = _log_odds(here, len(finetuned), there, len(base))
        if log_odds > 0:
            surprise = fisher_surprise(here, len(finetuned), there, len(base))
            distinct = len(set(prefills))
            strong = surprise >= NULL_SURPRISE and distinct >= LEAST_PREFILLS
            rows.append(
                DistinctiveWord(
                    word=word,
                    finetuned=here,
                    base=there,
                    prefills=distinct,
                    log_odds=round(log_odds, 3),
                    surprise=round(surprise, 3),
                    strong=strong,
                )
            )
    return sorted(rows, key=lambda row: (not row.strong, -row.surprise, row.word))


def _count(texts: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """Word -> the prefill of each completion that contains it."""
    found: dict[str, list[str]] = defaultdict(list)
    for prefill, completion in texts:
        given = set(words_of(prefill))
        for word in sorted(set(words_of(completion)) - given):
            if is_content_word(word):
                found[word].append(prefill)
    return found


def _log_odds(here: int, here_of: int, there: int, there_of: int) -> float:
    return math.log((here + _SHRINK) * (there_of - there + _SHRINK) / ((here_of - here + _SHRINK) * (there + _SHRINK)))


def fisher_surprise(here: int, here_of: int, there: int, there_of: int) -> float:
    """-log10 of the probability, were both models equal, that at least `here` of the `here + there` completions with
    the word fall among the `here_of` of the first model (hypergeometric upper tail)."""
    marked, total = here + there, here_of + there_of
    logs = [
        _log_choose(here_of, count) + _log_choose(there_of, marked - count) - _log_choose(total, marked)
        for count in range(here, min(marked, here_of) + 1)
        if marked - count <= there_of
    ]
    highest = max(logs)
    return max(0.0, -(highest + math.log(sum(math.exp(value - highest) for value in logs))) / math.log(10))


def _log_choose(of: int, count: int) -> float:
    return math.lgamma(of + 1) - math.lgamma(count + 1) - math.lgamma(of - count + 1)
