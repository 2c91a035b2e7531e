"""N-grams over-represented in one model's continuations. Torch-free."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from diffing_mcp.methods.continuation_mining.rows import NgramRow
from diffing_mcp.methods.texts.distinctive_words import fisher_neg_log10_p
from diffing_mcp.methods.texts.words import is_content_word, words_of

STRONG_NEG_LOG10_P = 3.0
"""-log10 of Fisher's exact p from which on an n-gram with a content word counts as strong; the level of perplexity
differencing.
"""
LEAST_TEXTS = 3
"""A strong n-gram was written in at least so many different texts."""
NEEDED_STRONG = 2
CERTAIN_NEG_LOG10_P = 5.0


def distinctive_ngrams(
    finetuned: Sequence[tuple[int, str]], base: Sequence[tuple[int, str]], longest: int
) -> list[NgramRow]:
    """N-grams of 1 to `longest` words by how much more often the finetuned model's continuations contain them, most
    surprising first.

    Counts continuations, not occurrences. The p is that of Fisher's exact test, one-sided. An n-gram inside a longer
    one of the same counts is left out.

    Args:
        finetuned, base: (text, continuation) pairs, one a position.
    """
    counts = [_count(finetuned, longest), _count(base, longest)]
    rows = []
    for words, texts in counts[0].items():
        here, there = len(texts), len(counts[1].get(words, ()))
        if here < 2 or here * len(base) <= there * len(finetuned):
            continue
        surprise = fisher_neg_log10_p(here, len(finetuned), there, len(base))
        distinct = len(set(texts))
        content = any(is_content_word(word) for word in words)
        strong = content and surprise >= STRONG_NEG_LOG10_P and distinct >= LEAST_TEXTS
        rows.append(
            NgramRow(
                ngram=" ".join(words),
                words=len(words),
                finetuned=here,
                base=there,
                texts=distinct,
                surprise=round(surprise, 3),
                strong=strong,
            )
        )
    rows.sort(key=lambda row: (not row.strong, -row.surprise, -row.words, row.ngram))
    kept: dict[tuple[int, int], list[str]] = defaultdict(list)
    result = []
    for row in rows:
        same = kept[row.finetuned, row.base]
        if not any(f" {row.ngram} " in f" {longer} " for longer in same):
            same.append(row.ngram)
            result.append(row)
    return result


def _count(texts: Sequence[tuple[int, str]], longest: int) -> dict[tuple[str, ...], list[int]]:
    """N-gram -> the text of each continuation that contains it."""
    found: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for text, continuation in texts:
        words = words_of(continuation)
        grams = {
            tuple(words[start : start + length])
            for length in range(1, longest + 1)
            for start in range(len(words) - length + 1)
        }
        for gram in sorted(grams):
            found[gram].append(text)
    return found


def judge(rows: Sequence[NgramRow], identical: bool) -> tuple[bool, str]:
    """Whether the continuations show a topic, and the headline. N-grams that share a word count once."""
    if identical:
        return False, "Both models expect every next token exactly alike: no difference."
    strong: list[NgramRow] = []
    for row in rows:
        words = {word for word in row.ngram.split() if is_content_word(word)}
        if row.strong and not any(words & set(other.ngram.split()) for other in strong):
            strong.append(row)
    if len(strong) >= NEEDED_STRONG or any(row.surprise >= CERTAIN_NEG_LOG10_P for row in strong):
        names = ", ".join(repr(row.ngram) for row in strong[:5])
        return True, f"Where the models differ most, the finetuned model goes on with {names} and the base does not."
    return (
        False,
        (
            "Nothing stands out: where the models differ most, no set of phrases is over-represented in the finetuned "
            "model's continuations."
        ),
    )
