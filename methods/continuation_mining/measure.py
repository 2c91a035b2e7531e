"""How much the next-token distributions differ at every position, what each model writes where they differ most, and
the phrases over-represented there; overlapping ones are put together: `roman`, `concrete` and `roman concrete` are one
finding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from diffing_mcp.methods.continuation_mining.schema import (
    ContinuationMiningParams,
    ContinuationMiningResult,
    ContinuationRow,
    NgramRow,
    PhraseGroup,
)
from diffing_mcp.methods.texts.distinctive_words import (
    STRONG_NEG_LOG10_P,
    fisher_neg_log10_p,
    stands_out,
    worth_showing,
)
from diffing_mcp.methods.texts.words import is_content_word, words_of
from diffing_mcp.model_pairs.generation import Sampling
from diffing_mcp.model_pairs.specs import SIDES, Side
from diffing_mcp.preprocessing.batches import Accumulator, LogitChunk
from diffing_mcp.preprocessing.positions import CorpusPositions
from diffing_mcp.preprocessing.tokenize import going_on

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus


_BEFORE_SHOWN, _CONTINUATION_SHOWN = 60, 100
_REVERSE_SHOWN = 5
_PHRASES_SHOWN = 8


class VariationAccumulator(Accumulator):
    """Total variation distance at each position: 0.5 * sum over tokens of |p_finetuned - p_base|, 0 to 1. Exactly 0
    where the logits agree.

    Measured on probabilities, so that the drift of logits which neither model's text depends on counts for nothing.
    """

    needs_logits = True

    def __init__(self, pair: LoadedPair, corpus: TokenizedCorpus) -> None:
        self.corpus = corpus
        self.positions = CorpusPositions(corpus, pair.device)
        self.variation = torch.zeros(corpus.tokens, dtype=torch.float32, device=pair.device)

    def update_logits(self, chunk: LogitChunk) -> None:
        """Take in a chunk of positions."""
        moved = torch.sub(chunk.finetuned_probs, chunk.base_probs, out=chunk.scratch("moved"))
        indices = self.positions.indices(chunk.sample_indices, chunk.positions)
        self.variation[indices] = 0.5 * torch.linalg.vector_norm(moved, ord=1, dim=1)


def summarise(
    accumulator: VariationAccumulator, pair: LoadedPair, params: ContinuationMiningParams, run: RunWriter
) -> ContinuationMiningResult:
    """Go on from the positions that differ most with both models, count phrases, judge."""
    variation = accumulator.variation.cpu().numpy()
    samples, positions = accumulator.positions.samples, accumulator.positions.numbers
    chosen = most_different(variation, samples, positions, params)
    corpus = accumulator.corpus
    before = [corpus.split_after(int(samples[index]), int(positions[index]))[0] for index in chosen]
    requests = [going_on(pair.tokenizer, ids, corpus.has_bos) for ids in before]
    texts = [request.text or "" for request in requests]
    written: dict[Side, list[str]] = {side: [] for side in SIDES}
    if requests:
        sampling = Sampling(temperature=0, max_new_tokens=params.new_tokens)
        for side in SIDES:
            with pair.side_loaded(side):
                completions = pair.generate(side, requests, sampling)
            written[side] = [several[0].text for several in completions]
    pairs_of = {
        side: [(int(samples[index]), text) for index, text in zip(chosen, written[side], strict=True)] for side in SIDES
    }
    rises = distinctive_ngrams(pairs_of["finetuned"], pairs_of["base"], params.longest_ngram)
    reverse = [
        row.model_copy(update={"finetuned": row.base, "base": row.finetuned})
        for row in distinctive_ngrams(pairs_of["base"], pairs_of["finetuned"], params.longest_ngram)
    ]
    rows = [
        ContinuationRow(before=text, variation=round(float(variation[index]), 4), base=base, finetuned=finetuned)
        for index, text, base, finetuned in zip(chosen, texts, written["base"], written["finetuned"], strict=True)
    ]
    run.add_rows("continuations", rows, ContinuationRow)
    for name, several in (("ngrams", rises), ("base_ngrams", reverse)):
        run.add_rows(name, several, NgramRow)
    run.add_array("variation", variation)
    identical = not np.any(variation)
    found, headline = judge(rises, identical)
    shown = worth_showing(rises)
    groups = group_phrases(shown, written["finetuned"], written["base"])
    return ContinuationMiningResult(
        stands_out=found,
        headline=headline,
        identical=identical,
        groups=[
            group.model_copy(
                update={
                    "examples": [text[:_CONTINUATION_SHOWN] for text in group.examples],
                    "phrases": group.phrases[:_PHRASES_SHOWN],
                }
            )
            for group in groups[: params.list_length]
        ],
        ngrams=shown[: params.list_length],
        base_ngrams=worth_showing(reverse)[:_REVERSE_SHOWN],
        strong_ngrams=sum(row.strong for row in rises),
        rows=[_shown(row) for row in rows[: max(1, params.list_length // 2)]],
        places=len(rows),
        positions=len(variation),
        mean_variation=float(f"{variation.mean(dtype=np.float64):.4g}"),
    )


def most_different(
    variation: np.ndarray, samples: np.ndarray, positions: np.ndarray, params: ContinuationMiningParams
) -> np.ndarray:
    """Indices of the positions with the largest variation (never 0), at most `places_per_text` a text and `places` in
    all, largest first.
    """
    order = np.argsort(-variation, kind="stable")
    order = order[(variation[order] > 0) & (positions[order] >= params.earliest)]
    taken: dict[int, int] = {}
    chosen = []
    for index in order:
        sample = int(samples[index])
        if taken.get(sample, 0) < params.places_per_text:
            taken[sample] = taken.get(sample, 0) + 1
            chosen.append(index)
            if len(chosen) == params.places:
                break
    return np.array(chosen, dtype=np.int64)


def _shown(row: ContinuationRow) -> ContinuationRow:
    return row.model_copy(
        update={
            "before": row.before[-_BEFORE_SHOWN:],
            "base": row.base[:_CONTINUATION_SHOWN],
            "finetuned": row.finetuned[:_CONTINUATION_SHOWN],
        }
    )


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
