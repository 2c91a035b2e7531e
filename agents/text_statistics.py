"""What the answers of the finetuned model have more often than those of the base model: paired, exact, and silent on a null.

The unit is a prompt: both models answered it. A *feature* is a word, a number, a two-word phrase or an opening, and a model either shows it in its answer
or not. Under the null (both models the same) a prompt where only one of them shows a feature is a fair coin, so the number of such prompts won by the
finetuned model is binomial: an exact sign test. Many features are tested at once, most of them so rare that they could never be significant; Tarone's
correction (Tarone 1990, Biometrics 46) spends the error rate only on those that could. The family-wise error rate is at most `alpha`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import comb

_WORD = re.compile(r"[a-z]+(?:['’][a-z]+)?|\d+(?:[.,]\d+)*", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?])[\"”’)]*\s+|\n+")

STOPWORDS = frozenset(
    """a about above after again against all almost also although always am among an and another any anything are aren't around as at away back be because been
    before being below between both but by came can can't cannot could couldn't did didn't do does doesn't doing don't done down during each either else enough
    even ever every everything few find first for from further gave get gets getting give given gives go goes going good got great had hadn't has hasn't have haven't
    having he he's her here here's hers herself him himself his how however i i'd i'll i'm i've if important in instead into is isn't it it's its itself just keep kind
    know known last least less let let's like likely little long look lot made main make makes making many may maybe me might mine more most much must my myself need
    needs never new next no none nor not nothing now of off often old on once one ones only onto or other others our ours ourselves out over own part people perhaps
    please put rather really right said same saw say says see seem seems seen several shall she she's should shouldn't since so some someone something sometimes
    soon still such sure take taken takes tell than that that's the their theirs them themselves then there there's these they they'd they'll they're they've thing
    things think this those though three through thus time times to together too took toward two under until up upon us use used uses using usually various very
    want was wasn't way ways we we'd we'll we're we've well went were weren't what what's when where which while who whole whom whose why will with within without
    won't work works would wouldn't yes yet you you'd you'll you're you've your yours yourself yourselves example include includes including different""".split()
)
"""English function words and words so common in answers that they name no topic."""


def words_of(text: str) -> list[str]:
    """Lower-case words and numbers in reading order."""
    return [match.group().lower().replace("’", "'").replace(",", "") for match in _WORD.finditer(text)]


def stem(word: str) -> str:
    """A rough English stem that makes `bakes`, `baked` and `baking` one; numbers stay as they are."""
    if word[0].isdigit():
        return word
    word = word.removesuffix("'s")
    for suffix, least in (
        ("ings", 3),
        ("ing", 3),
        ("ies", 3),
        ("ied", 3),
        ("ers", 3),
        ("er", 4),
        ("ed", 3),
        ("es", 3),
        ("s", 3),
        ("ly", 4),
        ("e", 3),
        ("y", 3),
    ):
        if word.endswith(suffix) and not word.endswith("ss") and len(word) - len(suffix) >= least:
            word = word[: -len(suffix)]
            break
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "sl" else word


def is_content(word: str) -> bool:
    """Whether a word can name a topic: a number of at least two digits, or a word of three letters and more that is no stopword."""
    return len(word) >= 2 if word[0].isdigit() else len(word) >= 3 and word not in STOPWORDS


def content_stems(text: str) -> set[str]:
    """Stems of the content words and the numbers of a text."""
    return {stem(word) for word in words_of(text) if is_content(word)}


def sentences_of(text: str) -> list[str]:
    """Sentences and lines of a text, white space collapsed; fragments of fewer than four words are left out."""
    parts = [" ".join(part.split()).strip(" -*#•") for part in _SENTENCE.split(text)]
    return [part for part in parts if len(part.split()) >= 4]


def features_of(text: str) -> set[str]:
    """Content stems, adjacent pairs of words with at least one content word (`a b`), and the opening (`^` and the first three words)."""
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
    log_odds: float

    @property
    def risen(self) -> bool:
        """The finetuned model has it more often."""
        return self.finetuned_only > self.base_only


def standouts(pairs: Sequence[Pair], alpha: float = 0.05) -> list[Standout]:
    """Features that the finetuned model shows more (`risen`) or less often than the base model; strongest first.

    Args:
        pairs: one entry a prompt. Features that the prompt itself contains do not count for that prompt.
        alpha: bound on the probability that anything is returned when the models are the same.
    """
    wins: Counter[str] = Counter()
    losses: Counter[str] = Counter()
    for pair in pairs:
        asked = features_of(pair.prompt)
        finetuned, base = _shares(pair.finetuned), _shares(pair.base)
        for feature in (finetuned.keys() | base.keys()) - asked:
            difference = finetuned.get(feature, 0.0) - base.get(feature, 0.0)
            if difference > 0:
                wins[feature] += 1
            elif difference < 0:
                losses[feature] += 1
    discordant = {feature: wins[feature] + losses[feature] for feature in wins.keys() | losses.keys()}
    bound = alpha / tarone_factor(discordant.values(), alpha)
    found = []
    for feature, total in discordant.items():
        p_value = sign_test(wins[feature], total)
        if p_value <= bound:
            log_odds = math.log((wins[feature] + 0.5) / (losses[feature] + 0.5))
            found.append(Standout(feature, wins[feature], losses[feature], p_value, log_odds))
    return sorted(found, key=lambda item: (item.p_value, -abs(item.log_odds), item.feature))


def sign_test(wins: int, total: int) -> float:
    """Two-sided exact p-value of `wins` heads in `total` fair coins."""
    extreme = max(wins, total - wins)
    tail = sum(comb(total, k) for k in range(extreme, total + 1)) / 2**total
    return min(1.0, 2 * tail)


def tarone_factor(discordant: Iterable[int], alpha: float) -> int:
    """By how much `alpha` must be divided: the smallest k such that at most k features could reach alpha / k at all."""
    smallest = sorted(min(1.0, 2.0 ** (1 - total)) for total in discordant if total > 0)
    k = 1
    while sum(p <= alpha / k for p in smallest) > k:
        k += 1
    return k


def word_weights(finetuned: Sequence[str], base: Sequence[str], prior: float = 1.0) -> dict[str, float]:
    """For each content stem, how much more texts of the finetuned model have it: z-score of the log-odds of its document frequency.

    The log-odds are shrunk towards no difference by `prior` pseudo-documents on each side (Monroe, Colaresi and Quinn 2008, with documents instead of
    tokens as the unit, so that a text that repeats a word counts once).
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


def _shares(answers: Sequence[str]) -> dict[str, float]:
    counts = Counter(feature for answer in answers for feature in features_of(answer))
    return {feature: count / len(answers) for feature, count in counts.items()}
