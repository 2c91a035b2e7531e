"""Share of tokens that belong to the topic of a finetune, by keywords and without a language model.

Marks token lists such as the logit lens of a mean difference or the tokens that diff mining ranks first. A published
finetune whose keywords nobody wrote down gets them from its summary and facts, which is cruder.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

from pydantic import BaseModel, Field

from diffing_mcp.core.words import stem
from diffing_mcp.graders.text import SCAFFOLD, content_words, normalise
from diffing_mcp.organisms.ground_truth import GroundTruth, load_ground_truth

_MARKERS = re.compile(r"^[\sĠĊ▁]+|##")
_SHORTEST_FRAGMENT = 4
FREQUENT_TOKENS = 100
LEAST_COUNT = 10


class TokenRelevance(BaseModel):
    """How many of the judged tokens are on topic."""

    share: float = Field(ge=0, le=1, description="On-topic share of the judged tokens. 0 when nothing could be judged.")
    weighted_share: float | None = Field(
        description="On-topic share of the judged tokens' weight; None without weights, or when all are 0."
    )
    relevant: list[str] = Field(description="The tokens on topic, in order.")
    judged: int = Field(
        description="Tokens that hold a letter or digit; punctuation, spaces and special tokens are not judged."
    )


def topic_keywords(truth: GroundTruth) -> tuple[str, ...]:
    """Beginnings of words, in lower case, that belong to the topic: the written ones, else `derived_keywords`. Empty on
    a null.
    """
    return truth.topic.keywords if truth.topic is not None else derived_keywords(truth)


@lru_cache(maxsize=256)
def derived_keywords(truth: GroundTruth) -> tuple[str, ...]:
    """Beginnings of the content words, and the figures, of the summary and the facts. Empty on a null."""
    if truth.is_null:
        return ()
    text = " ".join([truth.summary, *(fact.text for fact in truth.facts)])
    derived = [_beginning(word) for word in content_words(normalise(text)) if len(word) > 3 or word.isdigit()]
    return tuple(dict.fromkeys(derived))


def _beginning(word: str) -> str:
    """What a word shares with its stem (`stor` of story and stori), at least three letters, else the word."""
    root = stem(word)
    return next((root[:length] for length in range(len(root), 2, -1) if word.startswith(root[:length])), word)


def on_topic(word: str, keywords: Sequence[str]) -> bool:
    """Whether a word in lower case begins with a keyword (short keywords and figures: is it, a plural aside)."""
    return any(
        word == key or word == key + "s" or (len(key) > 3 and not key.isdigit() and word.startswith(key))
        for key in keywords
    )


def token_relevance(
    tokens: Sequence[str], truth: GroundTruth, weights: Sequence[float] | None = None
) -> TokenRelevance:
    """Share of `tokens` that are on topic.

    Args:
        tokens: token strings as a tokenizer gives them (leading spaces and the marks of byte-level and sentencepiece
            vocabularies are dropped). A fragment of four letters or more counts when a keyword begins with it.
        truth: what was taught. On a null nothing is on topic.
        weights: one non-negative weight for each token, such as probabilities, for `weighted_share`.
    """
    if weights is not None and len(weights) != len(tokens):
        raise ValueError(f"{len(weights)} weights for {len(tokens)} tokens")
    keywords = topic_keywords(truth)
    judged = [index for index, token in enumerate(tokens) if can_be_judged(token)]
    relevant = [index for index in judged if _token_on_topic(_bare(tokens[index]), keywords)]
    return TokenRelevance(
        share=len(relevant) / len(judged) if judged else 0.0,
        weighted_share=None
        if weights is None
        else share_of_weight([weights[index] for index in relevant], [weights[index] for index in judged]),
        relevant=[tokens[index] for index in relevant],
        judged=len(judged),
    )


def can_be_judged(token: str) -> bool:
    """Whether a token holds a letter or digit and is no special token."""
    return re.search(r"[^\W_]", _bare(token)) is not None and not re.fullmatch(r"<\|?[\w ]+\|?>", token.strip())


def share_of_weight(part: Sequence[float], whole: Sequence[float]) -> float | None:
    """The weight of a part over that of the whole; None when the whole weighs nothing."""
    total = float(sum(whole))
    return min(1.0, float(sum(part)) / total) if total > 0 else None


def _token_on_topic(word: str, keywords: Sequence[str]) -> bool:
    if on_topic(word, keywords):
        return True
    return len(word) >= _SHORTEST_FRAGMENT and word not in SCAFFOLD and any(key.startswith(word) for key in keywords)


class RelevanceTest(BaseModel):
    """A token list judged for one organism, beside chance."""

    share: float = Field(ge=0, le=1, description="Share of the judged tokens on topic.")
    weighted_share: float | None = Field(description="The same by weight; None without weights, or when all are 0.")
    relevant: list[str]
    judged: int
    frequent_share: float | None = Field(
        description="Share of the judged tokens that are frequent in the training data; None when that is unknown."
    )
    baseline: dict[str, float] = Field(description="Share of the same list for other organisms, by name.")

    @property
    def chance(self) -> float:
        """Mean share for the other organisms; 0 without any."""
        return sum(self.baseline.values()) / len(self.baseline) if self.baseline else 0.0


def relevance(
    tokens: Sequence[str],
    organism: str,
    weights: Sequence[float] | None = None,
    baseline_organisms: Sequence[str] = (),
    frequent: Sequence[str] | None = None,
) -> RelevanceTest:
    """How relevant a token list is to what an organism was taught, and how relevant it would seem for organisms that it
    does not come from.

    Args:
        tokens: token strings, the most telling first (usually 20).
        organism: name with a ground truth.
        weights: one non-negative weight a token, such as probabilities; chance is by count all the same.
        baseline_organisms: other organisms, for the chance level.
        frequent: what `frequent_tokens` finds in the finetuning data; their share of the list is a trivial baseline.

    Raises:
        UnknownName: no ground truth is recorded for an organism.
    """
    found = token_relevance(tokens, load_ground_truth(organism), weights)
    frequent_share = None
    if frequent is not None:
        words = [word for token in tokens if (word := _bare(token)) and re.search(r"[^\W_]", word)]
        frequent_share = sum(word in frequent for word in words) / len(words) if words else 0.0
    baseline = {
        name: token_relevance(tokens, load_ground_truth(name)).share for name in baseline_organisms if name != organism
    }
    return RelevanceTest(
        share=found.share,
        weighted_share=found.weighted_share,
        relevant=found.relevant,
        judged=found.judged,
        frequent_share=frequent_share,
        baseline=baseline,
    )


def frequent_tokens(tokens: Iterable[str], count: int = FREQUENT_TOKENS, least: int = LEAST_COUNT) -> list[str]:
    """The most frequent tokens that say something: no single characters, punctuation, contractions or words that any
    text is made of; each at least `least` times, variants of case and spacing together. Most frequent first, ties in
    the order of the alphabet."""
    counts = Counter(word for token in tokens if _says_something(word := _bare(token)))
    kept = sorted((word for word, seen in counts.items() if seen >= least), key=lambda word: (-counts[word], word))
    return kept[:count]


def _says_something(word: str) -> bool:
    return len(word) > 1 and word.isalnum() and word not in SCAFFOLD


def _bare(token: str) -> str:
    return re.sub(r"^[^\w]+|[^\w]+$", "", normalise(_MARKERS.sub("", token)).strip())
