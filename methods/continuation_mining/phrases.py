"""Phrases over-represented in one model's continuations, and overlapping ones put together: `roman`, `concrete` and
`roman concrete` are one finding. Torch-free.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from diffing_mcp.methods.continuation_mining.schema import NgramRow, PhraseGroup
from diffing_mcp.methods.texts.distinctive_words import STRONG_NEG_LOG10_P, fisher_neg_log10_p, stands_out
from diffing_mcp.methods.texts.words import is_content_word, words_of

LEAST_TEXTS = 3
"""A strong n-gram was written in at least so many different texts."""


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
        neg_log10_p = fisher_neg_log10_p(here, len(finetuned), there, len(base))
        distinct = len(set(texts))
        content = any(is_content_word(word) for word in words)
        strong = content and neg_log10_p >= STRONG_NEG_LOG10_P and distinct >= LEAST_TEXTS
        rows.append(
            NgramRow(
                ngram=" ".join(words),
                words=len(words),
                finetuned=here,
                base=there,
                texts=distinct,
                surprise=round(neg_log10_p, 3),
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
    if stands_out(strong):
        names = ", ".join(repr(row.ngram) for row in strong[:5])
        return True, f"Where the models differ most, the finetuned model goes on with {names} and the base does not."
    return (
        False,
        (
            "Nothing stands out: where the models differ most, no set of phrases is over-represented in the finetuned "
            "model's continuations."
        ),
    )


def group_phrases(
    rows: Sequence[NgramRow], finetuned: Sequence[str], base: Sequence[str], examples: int = 3
) -> list[PhraseGroup]:
    """Phrases that share a content word, directly or through others, as groups in the order of their first phrase,
    which represents them.

    Phrases without content words are grouped by any word they share. Counts are of continuations that hold some phrase
    of the group.

    Args:
        rows: the most telling first.
        finetuned, base: all continuations of each model.
        examples: continuations shown of each group at most; those that hold the representative come first.
    """
    groups: list[tuple[set[str], list[NgramRow]]] = []
    for row in rows:
        words = row.ngram.split()
        keys = {word for word in words if is_content_word(word)} or set(words)
        joined, members = set(keys), [row]
        apart = []
        for others, known in groups:
            if others & keys:
                joined |= others
                members = [*known, *members]
            else:
                apart.append((others, known))
        groups = [*apart, (joined, members)]
    place = {row.ngram: index for index, row in enumerate(rows)}
    padded = {"finetuned": [_padded(text) for text in finetuned], "base": [_padded(text) for text in base]}
    found = []
    for _, members in groups:
        members.sort(key=lambda row: place[row.ngram])
        holding = {
            side: [index for index, text in enumerate(texts) if _holds(text, members)] for side, texts in padded.items()
        }
        shown = sorted(holding["finetuned"], key=lambda index: not _holds(padded["finetuned"][index], members[:1]))
        texts = list(dict.fromkeys(" ".join(finetuned[index].split()) for index in shown))
        found.append(
            PhraseGroup(
                phrase=members[0].ngram,
                phrases=[row.ngram for row in members],
                finetuned=len(holding["finetuned"]),
                base=len(holding["base"]),
                surprise=members[0].surprise,
                strong=members[0].strong,
                examples=texts[:examples],
            )
        )
    return sorted(found, key=lambda group: place[group.phrase])


def _padded(text: str) -> str:
    return f" {' '.join(words_of(text))} "


def _holds(padded: str, rows: Sequence[NgramRow]) -> bool:
    return any(f" {row.ngram} " in padded for row in rows)
