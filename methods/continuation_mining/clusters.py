"""Overlapping phrases put together: `roman`, `concrete` and `roman concrete` are one finding. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from diffing_mcp.methods.continuation_mining.rows import NgramRow, PhraseGroup
from diffing_mcp.methods.texts.words import is_content_word, words_of


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
