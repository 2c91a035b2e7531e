"""Words that one model writes in more texts than another: counts, Fisher's exact test, and when they are a finding (see
docs/decisions/null-criterion.md). Torch-free: a few hundred short texts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, Self, TypeVar

from pydantic import BaseModel, Field

from diffing_mcp.methods.texts.words import EvidenceWord, is_content_word, words_of

SHOWN_NEG_LOG10_P = 1.3
"""Words that equal models show in one run of twenty each are not worth a reader's time."""
STRONG_NEG_LOG10_P = 3.0
"""-log10 of Fisher's exact p from which on a word counts as strong: about one of a thousand words of equal models
reaches it.
"""
CERTAIN_NEG_LOG10_P = 5.0
"""One word suffices from here on: even among a thousand tested words, equal models reach it once in a hundred runs."""
NEEDED_STRONG_WORDS = 2
"""Strong words that make a finding. One comes by chance: a thousand words are tested in every run."""
LEAST_PREFILLS = 3
"""A strong word was written after at least so many different prefills: repetition within one text shows nothing."""
_SHRINK = 0.5


class ComparedWord(BaseModel):
    """A content word that is in more texts than in those it is compared with."""

    word: str
    surprise: float = Field(description="-log10 p that equal texts would show it (Fisher's exact test, one-sided).")
    strong: bool = Field(description="Beyond what equal texts show.")

    @classmethod
    def of(cls, word: DistinctiveWord, **counts: Any) -> Self:
        """A found word as a row of this kind; `counts` are the other fields."""
        return cls(word=word.word, surprise=word.surprise, strong=word.strong, **counts)

    def with_counts(self, *counts: int, at: str = "") -> str:
        """`word 9:1 at +2 (p 10^-3.1)`, with a star when strong."""
        where = f" at {at}" if at else ""
        return (
            f"{'*' if self.strong else ''}{self.word} {':'.join(map(str, counts))}{where} (p 10^-{self.surprise:.1f})"
        )


class DistinctiveWord(ComparedWord):
    """A content word and in how many completions of each model it appears."""

    finetuned: int = Field(description="Completions of the finetuned model that contain it.")
    base: int = Field(description="Completions of the base model that contain it.")
    prefills: int = Field(description="Different prefills after which the finetuned model wrote it.")
    log_odds: float = Field(description="Shrunken log odds ratio of containing it.")

    def as_text(self) -> str:
        """`word 9:1 (p 10^-3.1)`, with a star when strong."""
        return self.with_counts(self.finetuned, self.base)


class Tested(Protocol):
    """A word or phrase with the -log10 p of its counts (`surprise` in stored runs)."""

    @property
    def surprise(self) -> float: ...

    @property
    def strong(self) -> bool: ...


T = TypeVar("T", bound=Tested)


def worth_showing(rows: Iterable[T]) -> list[T]:
    """The rows beyond what equal models show in one run of twenty."""
    return [row for row in rows if row.strong or row.surprise >= SHOWN_NEG_LOG10_P]


def stands_out(rows: Iterable[Tested]) -> bool:
    """Whether there are several strong rows, or one that chance does not give."""
    strong = [row for row in rows if row.strong]
    return len(strong) >= NEEDED_STRONG_WORDS or any(row.surprise >= CERTAIN_NEG_LOG10_P for row in strong)


def evidence_of(words: Iterable[ComparedWord]) -> list[EvidenceWord]:
    """Tested words as evidence for `overview`; a score of 1 is the null level."""
    return [EvidenceWord(word=row.word, score=row.surprise / STRONG_NEG_LOG10_P) for row in words]


def distinctive_words(finetuned: Sequence[tuple[str, str]], base: Sequence[tuple[str, str]]) -> list[DistinctiveWord]:
    """Content words that are in more completions of the finetuned model than of the base, most surprising first.

    Counts completions, not occurrences (small models repeat themselves), and never words that their own prefill already
    held. Log odds are shrunken by half a count a cell (Haldane-Anscombe); `surprise` is -log10 p of Fisher's exact
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
            neg_log10_p = fisher_neg_log10_p(here, len(finetuned), there, len(base))
            distinct = len(set(prefills))
            strong = neg_log10_p >= STRONG_NEG_LOG10_P and distinct >= LEAST_PREFILLS
            rows.append(
                DistinctiveWord(
                    word=word,
                    finetuned=here,
                    base=there,
                    prefills=distinct,
                    log_odds=round(log_odds, 3),
                    surprise=round(neg_log10_p, 3),
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


def fisher_neg_log10_p(here: int, here_of: int, there: int, there_of: int) -> float:
    """-log10 of the probability, were both models equal, that at least `here` of the `here + there` completions with
    the word fall among the `here_of` of the first model (hypergeometric upper tail)."""
    from scipy.stats import hypergeom

    upper_tail = hypergeom.logsf(here - 1, here_of + there_of, here + there, here_of)
    return max(0.0, -float(upper_tail) / math.log(10))
