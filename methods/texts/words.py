"""Tokens as words: their text, which variants belong together, and which of them carry content. Torch-free.

Methods that end in lists of tokens use this to merge `Cake`, ` cake` and `cake,` into one word, and to tell words that
can name a topic from function words, pieces of words, punctuation, code and special tokens.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import regex
from pydantic import BaseModel, Field

from diffing_mcp.core.words import FUNCTION_WORDS, word_spans

_EDGES = regex.compile(r"^[^\p{L}\p{N}]+|(?:[^\p{L}\p{N}\p{M}]\p{M}*)+$")
_LETTERS = regex.compile(r"\p{L}[\p{L}\p{M}]*")
_INNER_CAPITAL = re.compile(r"[a-z][A-Z]|[A-Z]{2,}[a-z]")
_CODE_MARKS = frozenset("<>{}[]()\\/=_$#@|~^*&+`")
MIN_LETTERS = 3
MIN_LETTERS_UNSPACED = 2
"""Scripts without spaces (Chinese, Japanese, Thai) write content words in two characters."""


class EvidenceWord(BaseModel):
    """A content word that a method saw rise under the finetuned model; `overview` looks for words on which several
    methods agree.
    """

    word: str = Field(description="Lower-cased, case and space variants merged.")
    score: float = Field(
        description="How far it stands out, in the method's own unit; 1.0 is the method's own level for standing out."
    )


def normalise(text: str) -> str:
    """A token or word without surrounding spaces and punctuation, lower-cased; empty when nothing is left.
    Idempotent.
    """
    previous, current = text, _EDGES.sub("", unicodedata.normalize("NFKC", text)).casefold()
    while current != previous:  # folding may produce new marks at the edges
        previous, current = current, _EDGES.sub("", unicodedata.normalize("NFKC", current)).casefold()
    return current


def is_content_word(text: str) -> bool:
    """Whether a token's text can name a topic: letters only, long enough, no function word, not written like an
    identifier of code.
    """
    bare = _EDGES.sub("", text)
    word = normalise(text)
    if (
        not _LETTERS.fullmatch(word)
        or word in FUNCTION_WORDS
        or _INNER_CAPITAL.search(bare)
        or not _CODE_MARKS.isdisjoint(text)
    ):
        return False
    unspaced = not word.isascii() and any(ord(character) >= 0x0E00 for character in word)
    return len(word) >= (MIN_LETTERS_UNSPACED if unspaced else MIN_LETTERS)


def words_of(text: str) -> list[str]:
    """The normalised words of a text, in order, function words included."""
    return [word for start, end in word_spans(text) if (word := normalise(text[start:end]))]


def repetition(text: str) -> float:
    """Share of a text's word triples that came before in it; 0 below four words."""
    words = words_of(text)
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) if len(triples) > 1 else 0.0


@dataclass(frozen=True)
class Vocabulary:
    """What a token id means. All arrays have one entry a token of the model's vocabulary.

    Attributes:
        texts: decoded text, with a leading space where the token starts a word.
        special: [V] bool, special and added tokens (and ids without a token).
        content: [V] bool, the token starts a word and is a content word by form.
        word_index: [V] int64, index into `words` of the merged word; special tokens and tokens without letters or
            digits stay alone.
        words: merged forms.
        word_content: [W] bool, some variant of the word is a content token.
    """

    texts: list[str]
    special: np.ndarray
    content: np.ndarray
    word_index: np.ndarray
    words: list[str]
    word_content: np.ndarray

    def merge(self, values: np.ndarray) -> np.ndarray:
        """Sums over the variants of each word: [..., V] -> [..., W] float64."""
        flat = values.reshape(-1, values.shape[-1])
        merged = np.stack([np.bincount(self.word_index, weights=row, minlength=len(self.words)) for row in flat])
        return merged.reshape(*values.shape[:-1], len(self.words))


_cache: dict[tuple[int, int], tuple[Any, Vocabulary]] = {}


def vocabulary(tokenizer: Any, size: int) -> Vocabulary:
    """The vocabulary of a tokenizer for a model with `size` logits; made once a tokenizer (about a second for 50,000
    tokens).
    """
    key = (id(tokenizer), size)
    found = _cache.get(key)  # in one step: another thread may empty the cache
    if found is not None and found[0] is tokenizer:
        return found[1]
    known = min(size, len(tokenizer))
    texts = token_texts(tokenizer, range(known)) + [f"[unused {index}]" for index in range(known, size)]
    added = set(getattr(tokenizer, "added_tokens_decoder", {})) | set(tokenizer.all_special_ids)
    special = np.array([index in added or index >= known for index in range(size)])
    result = build_vocabulary(texts, special)
    _cache.clear()  # one tokenizer at a time is enough; a cache of many would hold many tokenizers
    _cache[key] = (tokenizer, result)
    return result


def build_vocabulary(texts: list[str], special: np.ndarray) -> Vocabulary:
    """Group tokens into words; see `Vocabulary`."""
    size = len(texts)
    starts_word = np.array([text[:1].isspace() or text[:1] >= "\u0e00" for text in texts], dtype=bool)
    content = np.array(
        [not special[index] and bool(starts_word[index]) and is_content_word(texts[index]) for index in range(size)],
        dtype=bool,
    )
    word_of: dict[str, int] = {}
    words: list[str] = []
    word_index = np.empty(size, dtype=np.int64)
    for index, text in enumerate(texts):
        word = "" if special[index] else normalise(text)
        name = word or f"\x00{index}"
        if name not in word_of:
            word_of[name] = len(words)
            words.append(word or text)
        word_index[index] = word_of[name]
    word_content = np.zeros(len(words), dtype=bool)
    np.logical_or.at(word_content, word_index, content)
    return Vocabulary(texts, special, content, word_index, words, word_content)


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Decoded text of single tokens; the word-start mark of SentencePiece becomes a space (byte-level markers decode to
    one anyway).
    """
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    decoded = tokenizer.batch_decode([[index] for index in ids], clean_up_tokenization_spaces=False)
    return [
        f" {text}" if isinstance(piece, str) and piece.startswith("▁") and not text.startswith(" ") else text
        for piece, text in zip(pieces, decoded, strict=True)
    ]


class TokenNames:
    """Texts of tokens, decoded once each."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))
        return self._known[token]

    def column(self, tokens: np.ndarray) -> Any:
        """Names of many tokens as a dictionary-encoded column."""
        import pyarrow as pa

        unique, indices = np.unique(tokens, return_inverse=True)
        return pa.DictionaryArray.from_arrays(
            pa.array(indices.astype(np.int32)), pa.array([self(int(token)) for token in unique])
        )
