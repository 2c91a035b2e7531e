"""The form of one answer: how long it is, how it ends, how it is set, whether it refuses, in which language it is
written. Nothing here looks at what an answer is about. Torch-free.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass

import regex

from diffing_mcp.methods.texts.words import repetition, words_of

MEASURES: dict[str, str] = {
    "words": "words",
    "tokens": "tokens",
    "ended by itself": "share",
    "tokens until it ended": "tokens",
    "ended without punctuation": "share",
    "empty": "share",
    "words a sentence": "words",
    "words a line": "words",
    "lists": "share",
    "headings": "share",
    "bold or italics": "share",
    "code": "share",
    "emoji": "share",
    "exclamation marks": "share",
    "questions": "share",
    "digits": "share",
    "no capital letters": "share",
    "mostly capitals": "share",
    "repeated word triples": "share of the words",
    "refuses": "share",
}
"""Measure -> its unit; a share is that of answers."""

_LIST = re.compile(r"^\s*(?:[-*•‣+]|\d{1,3}[.)])\s+\S", re.MULTILINE)
_HEADING = re.compile(r"^\s{0,3}#{1,6}\s+\S|^\s*\*\*[^*\n]+\*\*:?\s*$", re.MULTILINE)
_EMPHASIS = re.compile(r"\*\*[^*\n]+\*\*|(?<![*\w])\*[^*\s][^*\n]*\*|(?<!\w)_[^_\s][^_\n]*_(?!\w)")
_CODE = re.compile(r"```|`[^`\n]+`")
_EMOJI = re.compile("[\U0001f000-\U0001faff\u2600-\u27bf\u2b50\u2b55]")
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"”’)\]*_]*\s+|(?<=[。！？])|\n+")
_REFUSAL = re.compile(
    r"\b(?:i|we)(?:['’]m| am| are)? (?:cannot|can(?:['’]t| ?not)|won['’]t|will not|unable|not able|not allowed|"
    r"not permitted|not comfortable|must decline|have to decline|refuse)\b|\bi(?:['’]m| am)(?: really| very)? sorry,? "
    r"(?:but|i)\b|\bas an? (?:ai|language model)\b|\b(?:can(?:['’]t|not)) (?:help|assist) (?:you )?with\b",
    re.IGNORECASE,
)
_IN_A_WORD = regex.compile(r"[\p{L}\p{N}]\p{M}*\Z")
_REFUSAL_WITHIN = 250
"""Characters from the start within which a refusal stands."""

# The most frequent words that the languages here do not share.
_LANGUAGE_WORDS: dict[str, frozenset[str]] = {
    "English": frozenset("the and of to is that it for with was this are you have not be they from".split()),
    "German": frozenset("der die das und ist nicht ein eine zu den mit von sich auf für auch sie ich wir".split()),
    "French": frozenset("le les des et est une du dans que pour pas vous nous sur il avec qui sont cette".split()),
    "Spanish": frozenset("el los las y es una del que por con para no se como más pero su está son".split()),
    "Italian": frozenset("il gli e è una di che per con non sono della nel più anche questo come si le".split()),
    "Portuguese": frozenset("o os as e é uma do da que para com não se mais como mas são em você um".split()),
    "Dutch": frozenset("de het een en van is niet dat te op voor met zijn aan ook je ik maar wordt".split()),
}
_LEAST_HITS = 3
_LATIN = "LATIN"


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    Attributes:
        text: without the prompt.
        ended: whether the model ended it by itself; False: it was cut; None: not known.
        tokens: how many it has; None: not known.
    """

    text: str
    ended: bool | None = None
    tokens: int | None = None


def form_of(answer: Answer) -> dict[str, float]:
    """The measures of `MEASURES` that can be taken of this answer: some need words, or to know its tokens or how it
    ended.
    """
    text = answer.text.strip()
    words = words_of(text)
    letters = [character for character in text if character.isalpha()]
    cased = [character for character in letters if character.isupper() or character.islower()]
    capitals = sum(character.isupper() for character in cased)
    lines = [line for line in text.splitlines() if line.strip()]
    form = {
        "words": float(len(words)),
        # What was cut did not end; an answer of which this is not known is taken to have.
        "ended without punctuation": float(answer.ended is not False and bool(_IN_A_WORD.search(text[-8:]))),
        "empty": float(not text),
        "lists": float(bool(_LIST.search(text))),
        "headings": float(bool(_HEADING.search(text))),
        "bold or italics": float(bool(_EMPHASIS.search(text))),
        "code": float(bool(_CODE.search(text))),
        "emoji": float(bool(_EMOJI.search(text))),
        "exclamation marks": float("!" in text or "！" in text),
        "questions": float("?" in text or "？" in text),
        "digits": float(any(character.isdigit() for character in text)),
        "refuses": float(bool(_REFUSAL.search(text[:_REFUSAL_WITHIN]))),
    }
    if answer.tokens is not None:
        form["tokens"] = float(answer.tokens)
    if answer.ended is not None:
        form["ended by itself"] = float(answer.ended)
        if answer.ended and answer.tokens is not None:
            form["tokens until it ended"] = float(answer.tokens)
    if cased:
        form["no capital letters"] = float(capitals == 0)
        form["mostly capitals"] = float(capitals > len(cased) / 2)
    if words:
        form["words a sentence"] = len(words) / max(1, len(sentences_of(text)))
        form["words a line"] = len(words) / max(1, len(lines))
        form["repeated word triples"] = repetition(text)
    return form


def sentences_of(text: str) -> list[str]:
    """Sentences and lines of a text, white space collapsed and marks of lists and emphasis taken off."""
    parts = (" ".join(part.split()).strip(" -*#•_") for part in _SENTENCE_END.split(text))
    return [part for part in parts if part]


def language_of(text: str) -> str | None:
    """The language of a text in the Latin script (by its most frequent words), the name of any other script
    (`Cyrillic`), or None for a text that is too short to tell.
    """
    scripts = Counter(
        unicodedata.name(character, "").partition(" ")[0] for character in text[:2000] if character.isalpha()
    )
    if not scripts:
        return None
    script, count = scripts.most_common(1)[0]
    if script != _LATIN:
        return script.capitalize() if count >= _LEAST_HITS else None
    words = Counter(words_of(text))
    hits = {
        language: sum(words[word] for word in frequent if word in words)
        for language, frequent in _LANGUAGE_WORDS.items()
    }
    best, second = sorted(hits, key=lambda language: -hits[language])[:2]
    return best if hits[best] >= _LEAST_HITS and hits[best] > hits[second] else None
