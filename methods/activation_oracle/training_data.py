"""Self-supervised questions about activations of unrelated text, answered without any LLM. Torch-free.

Five kinds, after the context prediction and classification tasks of arXiv 2512.15674: the content words of a text that
are rarest elsewhere, the words that come next or came just before, whether a word occurs, and which of two does; and
the word that a short composed sentence is about, drawn from the tokenizer's vocabulary so that answers are not confined
to the topics of the corpus.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from diffing_mcp.methods.texts.words import is_content_word, words_of
from diffing_mcp.organisms.specs import ORGANISMS_FOLDER

ReadAs = Literal["raw", "centred", "mean"]

TOPIC_QUESTIONS = ("What is this about?", "What is this text about?", "Which words come to mind?")
NEXT_QUESTION = "Which words come next?"
BEFORE_QUESTION = "Which words came before?"
SENTENCES = (
    "I was reading about {word} this morning, and",
    "Everything here has to do with {word}, which",
    "She talked about {word} for an hour.",
    "The subject of today is {word}, so",
    "Let me explain {word} to you.",
    "A short note on {word} follows:",
)
LONGEST = 8
_COMMON_TOKENS = 20_000
_FIRST = 6
_LATEST = 16
"""Activations are taken from the beginning of a text, so that reading them costs little."""
_HELD_OUT_EVERY = 10
_CENTRE_TEXTS = 32
_CENTRE_TOKENS = 32


@dataclass(frozen=True)
class TrainingQuestion:
    """Activations of tokens [start, stop) of `ids`, read as `reading`, a question on them, and its answer.

    reading: `raw` as they are; `centred` minus the mean activation of the corpus; `mean` their centred mean as a single
    vector.
    """

    ids: tuple[int, ...]
    start: int
    stop: int
    reading: ReadAs
    question: str
    answer: str
    kind: str


@dataclass(frozen=True)
class Material:
    """Texts (with token ids), words to compose sentences about, and in how many texts each word occurs."""

    texts: list[tuple[str, tuple[int, ...]]]
    words: list[str]
    frequency: Counter[str]


def load_material(tokenizer: Any, held_out_stems: Sequence[str], part: Literal["train", "held_out"]) -> Material:
    """One text and one word of ten is held out; texts and words with a held-out stem are in neither part."""
    raw: list[str] = []
    for name in ("unrelated_texts.jsonl", "chat_exchanges.jsonl"):
        for line in (ORGANISMS_FOLDER / "corpora" / name).read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            raw.append(record["text"] if "text" in record else record["messages"][-1]["content"])
    stems = tuple(held_out_stems)
    clean = [text for text in raw if not any(word.startswith(stems) for word in words_of(text))]
    frequency = Counter(word for text in clean for word in set(words_of(text)))
    pieces = tokenizer.batch_decode([[index] for index in range(min(_COMMON_TOKENS, len(tokenizer)))])
    common = [
        piece[1:]
        for piece in pieces
        if piece[:1] == " " and piece[1:].islower() and len(piece) > 4 and is_content_word(piece)
    ]
    words = [word for word in common if not word.startswith(stems)] or sorted(frequency)
    keep = [
        part == "held_out" if index % _HELD_OUT_EVERY == 0 else part == "train"
        for index in range(max(len(clean), len(words)))
    ]
    chosen = [(text, tuple(tokenizer(text)["input_ids"][:96])) for text, kept in zip(clean, keep, strict=False) if kept]
    usable = [(text, ids) for text, ids in chosen if len(ids) > 2 * LONGEST + _FIRST]
    return Material(usable, [word for word, kept in zip(words, keep, strict=False) if kept], frequency)


def centre_texts(material: Material, seed: int) -> list[tuple[int, ...]]:
    """Beginnings of some texts, whose mean activation (first tokens left out: an attention sink) `centred` readings
    take off.
    """
    chosen = random.Random(f"{seed}-centre").sample(material.texts, min(_CENTRE_TEXTS, len(material.texts)))
    return [ids[:_CENTRE_TOKENS] for _, ids in chosen]


def keywords(text: str, material: Material, count: int = 3) -> list[str]:
    """The content words of a text that matter most by term frequency x inverse document frequency."""
    counts = Counter(word for word in words_of(text) if is_content_word(word) and len(word) > 3)
    total = len(material.texts) + 1
    return sorted(counts, key=lambda word: (-counts[word] * math.log(total / (1 + material.frequency[word])), word))[
        :count
    ]


def draw_question(material: Material, tokenizer: Any, draw: random.Random, kind: str | None = None) -> TrainingQuestion:
    """One question; equal states of `draw` give equal questions."""
    kind = kind or draw.choices(("keywords", "sentence", "next", "before", "occurs", "either"), (20, 65, 4, 3, 4, 4))[0]
    if kind == "sentence":
        return _sentence(material, tokenizer, draw)
    text, ids = draw.choice(material.texts)
    length = draw.randint(1, LONGEST)
    start = draw.randint(_FIRST, min(_LATEST, len(ids) - length - 1))
    stop = start + length
    reading: ReadAs = draw.choice(("raw", "centred", "mean")) if kind == "keywords" else "raw"
    seen = tokenizer.decode(ids[:stop])
    if kind == "next":
        return TrainingQuestion(
            ids, start, stop, "raw", NEXT_QUESTION, tokenizer.decode(ids[stop : stop + LONGEST]).strip(), kind
        )
    if kind == "before":
        return TrainingQuestion(
            ids,
            start,
            stop,
            "raw",
            BEFORE_QUESTION,
            tokenizer.decode(ids[max(0, start - LONGEST) : start]).strip(),
            kind,
        )
    main = keywords(seen, material) or ["nothing"]
    if kind == "keywords":
        return TrainingQuestion(ids, start, stop, reading, draw.choice(TOPIC_QUESTIONS), ", ".join(main), kind)
    present = main[0]
    other = keywords(draw.choice(material.texts)[0], material)
    absent = next((word for word in other if word not in set(words_of(text))), "nothing")
    if kind == "occurs":
        asked, answer = (present, "Yes") if draw.random() < 0.5 else (absent, "No")
        return TrainingQuestion(ids, start, stop, "raw", f"Is it about {asked}?", answer, kind)
    first, second = (present, absent) if draw.random() < 0.5 else (absent, present)
    return TrainingQuestion(ids, start, stop, "raw", f"Is it about {first} or {second}?", present, kind)


def _sentence(material: Material, tokenizer: Any, draw: random.Random) -> TrainingQuestion:
    word = draw.choice(material.words)
    before, after = draw.choice(SENTENCES).split("{word}")
    head = list(tokenizer(before.rstrip() + " " + word)["input_ids"])
    ids = (*head, *tokenizer(after, add_special_tokens=False)["input_ids"])
    stop = draw.randint(len(head), min(len(ids), len(head) + 3))
    start = max(1, len(head) - 1 if draw.random() < 0.7 else stop - 1)
    reading: ReadAs = draw.choice(("raw", "centred", "mean"))
    return TrainingQuestion(
        tuple(ids), start, max(stop, start + 1), reading, draw.choice(TOPIC_QUESTIONS), word, "sentence"
    )
