"""Tokens of a corpus as words: which tokens make up one word, and what each word is. Vectorised over tokens;
torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diffing_mcp.methods.texts.words import is_content_word, normalise, token_texts

_FACTOR = np.uint64(0x9E3779B97F4A7C15)


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
