"""What the answers of the finetuned model have more often than those of the base model: paired, exact, and silent on a
null.

The unit is a prompt: both models answered it. A *feature* is a word, a number, a two-word phrase or an opening, and a
model either shows it in its answer or not. Under the null (both models the same) the two answers to a prompt could as
well be swapped. That gives one exact test of all features together (`swap_test`: do the differences of several prompts
agree more than after random swaps?), which a finetune that repeats itself passes after eight prompts already, where no
correction for thousands of single tests would. Only when it passes are features listed, each by its own sign test.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product

import numpy as np
from scipy.stats import binomtest

from diffing_mcp.core.words import FUNCTION_WORDS, stem

FEATURE_LEVEL = 0.125
"""Two-sided p-value of the sign test up to which a feature is listed, once all features together have passed: four
prompts to none suffice.
"""
MOST_ENUMERATED = 12
"""Prompts up to which every pattern of swaps is tried."""
RANDOM_PATTERNS = 9_999

_WORD = re.compile(r"[a-z]+(?:['’][a-z]+)?|\d+(?:[.,]\d+)*", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?])[\"”’)]*\s+|\n+")

_FILLERS = frozenset(
    "different example find important include includes including kind lot main new old people right soon time times "
    "various work works yes".split()
)
"""Words so common in answers that they name no topic."""


def words_of(text: str) -> list[str]:
    """Lower-case words and numbers in reading order."""
    return [match.group().lower().replace("’", "'").replace(",", "") for match in _WORD.finditer(text)]


def is_content(word: str) -> bool:
    """Whether a word can name a topic: a number of at least two digits, or a word of three letters and more that is no
    function word, contraction or filler.
    """
    if word[0].isdigit():
        return len(word) >= 2
    return len(word) >= 3 and word.partition("'")[0] not in FUNCTION_WORDS | _FILLERS


def content_stems(text: str) -> set[str]:
    """Stems of the content words and the numbers of a text."""
    return {stem(word) for word in words_of(text) if is_content(word)}


def sentences_of(text: str) -> list[str]:
    """Sentences and lines of a text, white space collapsed; fragments of fewer than four words are left out."""
    parts = [" ".join(part.split()).strip(" -*#•") for part in _SENTENCE.split(text)]
    return [part for part in parts if len(part.split()) >= 4]


def features_of(text: str) -> set[str]:
    """Content stems, adjacent pairs of words with at least one content word (`a b`), and the opening (`^` and the first
    three words).
    """
    words = words_of(text)
    found = {stem(word) for word in words if is_content(word)}
    found |= {f"{first} {second}" for first, second in pairwise(words) if is_content(first) or is_content(second)}
    if len(words) >= 3:
        found.add("^" + " ".join(words[:3]))
    return found


@dataclass(frozen=True)
class Pair:
    """The answers of both models to one prompt (as many samples on each side)."""

    prompt: str
    base: tuple[str, ...]
    finetuned: tuple[str, ...]


@dataclass(frozen=True)
class Standout:
    """A feature that one side shows significantly more often."""

    feature: str
    finetuned_only: int
    base_only: int
    p_value: float

    @property
    def risen(self) -> bool:
        """The finetuned model has it more often."""
        return self.finetuned_only > self.base_only


def standouts(pairs: Sequence[Pair], alpha: float = 0.01) -> list[Standout]:
    """Features that the finetuned model shows more (`risen`) or less often than the base model; strongest first.

    Args:
        pairs: one entry a prompt. Features that the prompt itself contains do not count for that prompt.
        alpha: bound on the probability that anything is returned when the models are the same. Fewer than
            `least_prompts(alpha)` cannot reach it.
    """
    differences = [_difference(pair) for pair in pairs]
    if swap_test(differences) > alpha:
        return []
    wins = Counter(feature for row in differences for feature, value in row.items() if value > 0)
    losses = Counter(feature for row in differences for feature, value in row.items() if value < 0)
    found = [
        Standout(feature, wins[feature], losses[feature], sign_test(wins[feature], wins[feature] + losses[feature]))
        for feature in wins.keys() | losses.keys()
    ]
    found.sort(key=lambda item: (item.p_value, -abs(item.finetuned_only - item.base_only), item.feature))
    return [item for item in found if item.p_value <= FEATURE_LEVEL]


def swap_test(differences: Sequence[Mapping[str, float]], seed: int = 0) -> float:
    """Probability, were the models the same, that the differences of the prompts agree with one another as much as they
    do.

    The statistic is the squared length of the sum of the rows. Under the null each row's sign is a fair coin, so the
    value is compared with those of all sign patterns (up to 12 rows; above, of 9,999 random ones): an exact
    sign-flipping test of a mean difference of zero.

    Args:
        differences: a row a prompt, feature -> finetuned minus base.
        seed: of the random patterns.
    """
    rows = [row for row in differences if row]
    if not rows:
        return 1.0
    columns = {feature: place for place, feature in enumerate(sorted({feature for row in rows for feature in row}))}
    matrix = np.zeros((len(rows), len(columns)))
    for number, row in enumerate(rows):
        matrix[number, [columns[feature] for feature in row]] = list(row.values())
    if len(rows) <= MOST_ENUMERATED:
        # The first row's sign is fixed: flipping all rows changes nothing.
        patterns = np.array(list(product((1.0,), *[(1.0, -1.0)] * (len(rows) - 1))))
    else:
        patterns = np.random.default_rng(seed).choice((1.0, -1.0), size=(RANDOM_PATTERNS + 1, len(rows)))
        patterns[0] = 1.0
    agreement = ((patterns @ (matrix @ matrix.T)) * patterns).sum(axis=1)
    return float((agreement >= agreement[0] * (1 - 1e-12) - 1e-9).mean())


def least_prompts(alpha: float) -> int:
    """Prompts without which `swap_test` cannot reach a level: of n there are 2**(n - 1) patterns."""
    return 1 + math.ceil(math.log2(1 / alpha))


@lru_cache(maxsize=1 << 12)
def sign_test(wins: int, total: int) -> float:
    """Two-sided exact p-value of `wins` heads in `total` fair coins; 1 without coins."""
    return float(binomtest(wins, total).pvalue) if total else 1.0


def word_weights(finetuned: Sequence[str], base: Sequence[str], prior: float = 1.0) -> dict[str, float]:
    """For each content stem, how much more texts of the finetuned model have it: z-score of the log-odds of its
    document frequency.

    The log-odds are shrunk towards no difference by `prior` pseudo-documents on each side (Monroe, Colaresi and Quinn
    2008, with documents instead of tokens as the unit, so that a text that repeats a word counts once).
    """
    counts = [Counter(stem for text in texts for stem in content_stems(text)) for texts in (finetuned, base)]
    sizes = [len(finetuned), len(base)]
    weights = {}
    for word in counts[0].keys() | counts[1].keys():
        a, c = counts[0][word] + prior, counts[1][word] + prior
        b, d = sizes[0] - counts[0][word] + prior, sizes[1] - counts[1][word] + prior
        weights[word] = (math.log(a / b) - math.log(c / d)) / math.sqrt(1 / a + 1 / b + 1 / c + 1 / d)
    return weights


def distinctive_sentences(
    texts: Sequence[str], weights: dict[str, float], count: int = 10, least: float = 1.0, against: Sequence[str] = ()
) -> list[str]:
    """Up to `count` sentences of `texts` that carry the most weight, each adding something to those before it.

    Args:
        texts: answers of the finetuned model, most telling first.
        weights: weight of a content stem, see `word_weights`; negative ones count as zero.
        count: how many sentences at most.
        least: a sentence must still carry this much weight when it is chosen.
        against: answers of the base model; sentences that it says too are left out.
    """
    said = {_bare(sentence) for text in against for sentence in sentences_of(text)}
    candidates: dict[str, set[str]] = {}
    for text in texts:
        for sentence in sentences_of(text):
            if _bare(sentence) not in said and 5 <= len(sentence.split()) <= 45:
                candidates.setdefault(sentence, content_stems(sentence))
    left = {word: max(0.0, weight) for word, weight in weights.items()}
    chosen: list[str] = []
    while candidates and len(chosen) < count:
        scores = {sentence: _weight(stems, left) for sentence, stems in candidates.items()}
        best = max(scores, key=lambda sentence: scores[sentence])
        if scores[best] < least:
            break
        chosen.append(best)
        for word in candidates.pop(best):
            # What is said already counts less, so that the next sentence brings another claim.
            left[word] = left.get(word, 0.0) * 0.35
    return chosen


def _weight(stems: set[str], weights: dict[str, float]) -> float:
    return sum(weights.get(word, 0.0) for word in stems) / math.sqrt(len(stems) + 3) if stems else 0.0


def _bare(sentence: str) -> str:
    return " ".join(words_of(sentence))


def _difference(pair: Pair) -> dict[str, float]:
    """Share of the finetuned model's samples with a feature minus that of the base model's, where they differ and the
    prompt has it not.
    """
    finetuned, base = _shares(pair.finetuned), _shares(pair.base)
    asked = features_of(pair.prompt)
    values = {
        feature: finetuned.get(feature, 0.0) - base.get(feature, 0.0)
        for feature in (finetuned.keys() | base.keys()) - asked
    }
    return {feature: value for feature, value in values.items() if value}


def _shares(answers: Sequence[str]) -> dict[str, float]:
    counts = Counter(feature for answer in answers for feature in features_of(answer))
    return {feature: count / len(answers) for feature, count in counts.items()}
