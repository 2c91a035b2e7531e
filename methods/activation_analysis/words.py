"""Tokens of a corpus as words, and which words are represented differently beyond what any finetune does. Torch-free.

Any training moves all activations, and it moves those of some words more than others, so neither the size of a
difference nor its significance is a finding. A word stands out when its tokens differ far more than is usual at their
positions, in most of the documents that hold it, by more robust standard deviations than words of finetunes that taught
nothing reach, and further than any word gets when the values are dealt to the words anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diffing_mcp.methods.activation_analysis.schema import WordRow
from diffing_mcp.methods.texts.words import is_content_word, normalise, token_texts

_FACTOR = np.uint64(0x9E3779B97F4A7C15)
LEAST_DOCUMENTS = 3
"""Documents that must hold a word; with fewer, a median is a single text."""
LEAST_WORDS = 20
"""Content words there must be for a spread of words."""
LEAST_SPREAD = 0.1
"""Robust standard deviation of log factors taken at least, so that words which all differ alike have none that stands
out for a trifle.
"""
LEVEL_Z = 10.0
LEVEL_FACTOR = 2.0
LEVEL_P = 0.05
LEAST_RELATIVE = 0.01
"""Relative difference below which a difference may be rounding of 16-bit models."""
SHUFFLES = 499
SHOWN_WORDS = 8
_EPSILON = 1e-4
"""Added to relative differences before logarithms are taken."""


@dataclass(frozen=True)
class CorpusWords:
    """The words of a corpus.

    Attributes:
        instance: [T] int64, number of the word that each token belongs to, rising along the texts.
        word: [I] int64, for each instance the index of its word.
        texts: of the words: normalised; tokens without a letter or digit as they are.
        content: [W] bool, can name a topic.
    """

    instance: np.ndarray
    word: np.ndarray
    texts: list[str]
    content: np.ndarray


def corpus_words(token_ids: np.ndarray, samples: np.ndarray, tokenizer: Any) -> CorpusWords:
    """Group tokens [T], ordered by sample and position, into words: a word starts at a token that begins with a space
    or holds no letter or digit.

    Words are told apart by a 64-bit hash of their token ids, so that only one text a different word is put together.
    """
    known, places = np.unique(token_ids, return_inverse=True)
    pieces = token_texts(tokenizer, known.tolist())
    special = set(tokenizer.all_special_ids)
    alone = np.array(
        [
            token in special or not any(map(str.isalnum, text))
            for token, text in zip(known.tolist(), pieces, strict=True)
        ],
        dtype=bool,
    )
    spaced = np.array([text[:1].isspace() or text[:1] >= "\u0e00" for text in pieces], dtype=bool)
    begins = (alone | spaced)[places]
    begins[1:] |= alone[places][:-1] | (samples[1:] != samples[:-1])
    begins[:1] = True
    instance = np.cumsum(begins) - 1
    starts = np.flatnonzero(begins)
    ends = np.append(starts[1:], len(token_ids))
    offsets = (np.arange(len(token_ids)) - starts[instance]).astype(np.uint64)
    mixed = (token_ids.astype(np.uint64) + np.uint64(1)) * (_FACTOR ^ (offsets * np.uint64(0xD1342543DE82EF95)))
    mixed ^= mixed >> np.uint64(29)
    hashes = np.add.reduceat(mixed * _FACTOR, starts) if len(starts) else np.zeros(0, dtype=np.uint64)
    _, first, form = np.unique(hashes, return_index=True, return_inverse=True)
    numbers: dict[str, int] = {}
    content: list[bool] = []
    form_word = np.zeros(len(first), dtype=np.int64)
    for number, example in enumerate(first.tolist()):
        text = "".join(pieces[place] for place in places[starts[example] : ends[example]])
        word = "" if known[places[starts[example]]] in special else normalise(text)
        name = word or text
        if name not in numbers:
            numbers[name] = len(numbers)
            content.append(False)
        form_word[number] = numbers[name]
        content[numbers[name]] |= bool(word) and is_content_word(text)
    return CorpusWords(instance, form_word[form], list(numbers), np.array(content, dtype=bool))


@dataclass(frozen=True)
class WordStatistics:
    """By word [W].

    Attributes:
        documents: documents that hold it.
        factor: exp of the median over documents of the mean log ratio of relative difference to the usual one.
        z: NaN for words in too few documents, and for all when there are too few words.
        p: NaN where z is, and for words that are no content words.
        standing: indices of content words that stand out, highest z first.
    """

    documents: np.ndarray
    factor: np.ndarray
    z: np.ndarray
    p: np.ndarray
    standing: list[int]


def usual(relative: np.ndarray, positions: np.ndarray, least: int = 20) -> np.ndarray:
    """For each token the median relative difference at its position (over all positions where fewer than `least` texts
    reach it).
    """
    if not len(relative):
        return relative
    count = int(positions.max()) + 1
    medians, counts = group_medians(relative, positions, count), np.bincount(positions, minlength=count)
    return np.asarray(np.where(counts < least, np.median(relative), medians)[positions])


def word_statistics(
    relative: np.ndarray, positions: np.ndarray, samples: np.ndarray, words: CorpusWords, kept: np.ndarray, seed: int
) -> WordStatistics:
    """Judge the words of a layer.

    Args:
        relative, positions, samples: [T], in the order of `words`.
        kept: [T] bool, tokens that count (no attention sinks).
    """
    size = len(words.texts)
    word = words.word[words.instance][kept]
    baseline = usual(relative[kept], positions[kept])
    excess = np.log((relative[kept] + _EPSILON) / (baseline + _EPSILON))
    # One value a word and document: its tokens in one text are not independent.
    documents = int(samples.max(initial=0)) + 1
    keys, entry = np.unique(word * documents + samples[kept], return_inverse=True)
    entry_word = keys // documents
    values = np.bincount(entry, weights=excess, minlength=len(keys)) / np.maximum(
        1, np.bincount(entry, minlength=len(keys))
    )
    held = np.bincount(entry_word, minlength=size)
    score = group_medians(values, entry_word, size)
    mean = np.bincount(word, weights=relative[kept], minlength=size) / np.maximum(1, np.bincount(word, minlength=size))
    z, p = np.full(size, np.nan), np.full(size, np.nan)
    judged = words.content & (held >= LEAST_DOCUMENTS)
    standing: list[int] = []
    if judged.sum() >= LEAST_WORDS:
        middle = np.median(score[judged])
        spread = max(1.4826 * float(np.median(np.abs(score[judged] - middle))), LEAST_SPREAD)
        enough = held >= LEAST_DOCUMENTS
        z[enough] = (score[enough] - middle) / spread
        highest = _shuffled_maxima(values[judged[entry_word]], entry_word[judged[entry_word]], seed)
        p[judged] = (1 + (highest[:, None] >= score[judged][None, :]).sum(axis=0)) / (1 + len(highest))
        found = (
            judged
            & (np.nan_to_num(z) >= LEVEL_Z)
            & (score >= np.log(LEVEL_FACTOR))
            & (mean >= LEAST_RELATIVE)
            & (np.nan_to_num(p, nan=1.0) <= LEVEL_P)
        )
        standing = sorted(np.flatnonzero(found).tolist(), key=lambda index: -z[index])
    return WordStatistics(held, np.exp(score), z, p, standing)


def group_medians(values: np.ndarray, groups: np.ndarray, size: int) -> np.ndarray:
    """Median of the values [N] of each group in 0..size-1; 0 for groups without values."""
    order = np.lexsort((values, groups))
    counts = np.bincount(groups, minlength=size)
    starts = np.cumsum(counts) - counts
    medians = np.zeros(size)
    some = counts > 0
    ranked = values[order]
    medians[some] = (ranked[(starts + (counts - 1) // 2)[some]] + ranked[(starts + counts // 2)[some]]) / 2
    return medians


def _shuffled_maxima(values: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Highest group median in each of `SHUFFLES` random deals of the values to the groups."""
    random = np.random.default_rng(seed)
    _, compact = np.unique(groups, return_inverse=True)
    size = int(compact.max()) + 1
    return np.array([group_medians(random.permutation(values), compact, size).max() for _ in range(SHUFFLES)])


def word_rows(
    layer: int, scores: dict[str, np.ndarray], words: CorpusWords, statistics: WordStatistics, kept: np.ndarray
) -> list[WordRow]:
    """One row a word, highest z first, words in too few documents last."""
    size = len(words.texts)
    word, instance = words.word[words.instance][kept], words.instance[kept]
    tokens = np.bincount(word, minlength=size)
    counts = np.bincount(words.word[np.unique(instance)], minlength=size)
    means = {
        name: np.bincount(word, weights=scores[name][kept], minlength=size) / np.maximum(1, tokens)
        for name in ("relative_difference", "norm_difference", "cosine_distance")
    }
    seen = np.flatnonzero(counts)
    order = seen[
        np.lexsort((seen, -means["relative_difference"][seen], -np.nan_to_num(statistics.z[seen], nan=-np.inf)))
    ]
    return [
        WordRow(
            layer=layer,
            word=words.texts[index],
            content=bool(words.content[index]),
            count=int(counts[index]),
            documents=int(statistics.documents[index]),
            factor=float(statistics.factor[index]),
            z=_number(statistics.z[index]),
            p=_number(statistics.p[index]),
            **{name: float(values[index]) for name, values in means.items()},
        )
        for index in order.tolist()
    ]


def top_words(rows: list[WordRow]) -> list[WordRow]:
    """Content words of highest z over the layers, each once."""
    best: dict[str, WordRow] = {}
    for row in rows:
        if row.content and row.z is not None and (row.word not in best or row.z > (best[row.word].z or 0.0)):
            best[row.word] = row
    return sorted(best.values(), key=lambda row: -(row.z or 0.0))[:SHOWN_WORDS]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
