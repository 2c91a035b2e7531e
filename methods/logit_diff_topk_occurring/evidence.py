"""Which words the finetuned model really expects more often, how sure that is, and the lists of tokens in every
ordering. NumPy only.

A raw logit difference says nothing about tokens that neither model ever predicts: their logits drift freely in
training, because a probability of 1e-9 costs no loss whether it doubles or not. So the judgement rests on expected
occurrences, that is sums of next-token probabilities over the text read: what a sample of the model would contain.
Their shrunken log odds log((E_finetuned + a) / (E_base + a)) stay near 0 for words that are negligible under both
models, and their error comes from leaving out one tenth of the samples at a time. See docs/decisions/null-criterion.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diffing_mcp.methods.logit_diff_topk_occurring.schema import NULL_LOG_ODDS

PRIOR_PER_THOUSAND = 0.01
"""Shrinkage `a`: expected occurrences per 1,000 positions that are added on both sides."""
LEAST_Z = 3.0
"""Standard errors that a strong word's log odds must be away from 0."""
LEAST_GAIN = 0.01
"""Further expected occurrences per 1,000 positions of a strong word at least."""
NEEDED_STRONG_WORDS = 5
CERTAIN_LOG_ODDS = 2 * NULL_LOG_ODDS
"""One strong word suffices from here on: twenty times as often, where no word of a finetune that taught nothing was
seen above three times as often."""


@dataclass(frozen=True)
class Rise:
    """Per word [W].

    Attributes:
        log_odds: shrunken log ratio of expected occurrences, nats; positive = expected more often by the finetuned
            model.
        error: jackknife standard error of `log_odds` over folds of samples; inf with fewer than two folds.
        gain: expected further occurrences per 1,000 positions (finetuned minus base).
    """

    log_odds: np.ndarray
    error: np.ndarray
    gain: np.ndarray


def shrunken_log_odds(base: np.ndarray, finetuned: np.ndarray, prior: float) -> np.ndarray:
    """log((finetuned + prior) / (base + prior)); exactly 0 where both agree."""
    return np.where(base == finetuned, 0.0, np.log((finetuned + prior) / (base + prior)))


def rises(base: np.ndarray, finetuned: np.ndarray, rows: np.ndarray, prior_per_thousand: float) -> Rise:
    """Rise of each word.

    Args:
        base, finetuned: [F, W] expected occurrences by fold of samples.
        rows: [F] positions read in each fold.
        prior_per_thousand: the prior `a`, as occurrences per 1,000 positions.
    """
    total_rows = max(1, int(rows.sum()))
    per_position = prior_per_thousand / 1000
    base_total, finetuned_total = base.sum(axis=0), finetuned.sum(axis=0)
    log_odds = shrunken_log_odds(base_total, finetuned_total, per_position * total_rows)
    used = np.flatnonzero(rows)
    if used.size < 2:
        error = np.full_like(log_odds, np.inf)
    else:
        without = np.stack(
            [
                shrunken_log_odds(
                    base_total - base[fold],
                    finetuned_total - finetuned[fold],
                    per_position * (total_rows - int(rows[fold])),
                )
                for fold in used
            ]
        )
        error = np.sqrt((used.size - 1) / used.size * np.square(without - without.mean(axis=0)).sum(axis=0))
    return Rise(log_odds, error, 1000 * (finetuned_total - base_total) / total_rows)


INFORMATIVE_SHARE = 0.1
"""Strength of the informative prior of `log_odds_z`: this share of the two models' mean expected occurrences of the
word itself.
"""


def log_odds_z(base: np.ndarray, finetuned: np.ndarray, positions: int) -> np.ndarray:
    """z-score [W] of the log odds of each word under an informative Dirichlet prior; exactly 0 where both models agree.

    Monroe, Colaresi and Quinn 2008 ("Fightin' Words"), equations 15, 16 and 20 to 22, with expected occurrences as
    counts: delta = the difference of log((y + a) / (n + a0 - y - a)) and its variance 1 / (y_finetuned + a) + 1 /
    (y_base + a). The prior `a` of a word is a share of what both models expect of it on average, plus the shrinkage of
    `rises`, so that words negligible under both stay near 0. The variance is that of counted words: it ignores that
    words of one text go together, so z orders words and is no test.

    Args:
        base, finetuned: [W] expected occurrences over all `positions` read.
    """
    prior = INFORMATIVE_SHARE * (base + finetuned) / 2 + PRIOR_PER_THOUSAND * max(1, positions) / 1000
    rest = positions + prior.sum() - prior
    delta = np.log((finetuned + prior) / np.maximum(rest - finetuned, 1e-9)) - np.log(
        (base + prior) / np.maximum(rest - base, 1e-9)
    )
    error = np.sqrt(1 / (finetuned + prior) + 1 / (base + prior))
    return np.where(base == finetuned, 0.0, delta / error)


def strong(rise: Rise) -> np.ndarray:
    """[W] bool: the rise is beyond what finetunes that taught nothing show, sure of, and of a size that would be seen
    in text.
    """
    return (rise.log_odds >= NULL_LOG_ODDS) & (rise.log_odds >= LEAST_Z * rise.error) & (rise.gain >= LEAST_GAIN)


def stands_out(rise: Rise, is_strong: np.ndarray) -> bool:
    """Whether there are several strong words, or one that is far beyond the null level. `is_strong`: [W] bool."""
    return bool(is_strong.sum() >= NEEDED_STRONG_WORDS or (rise.log_odds[is_strong] >= CERTAIN_LOG_ODDS).any())


@dataclass(frozen=True)
class Entries:
    """The list entries of a run (tokens, or words when it was normalised) with their statistics; all arrays [E]."""

    texts: list[str]
    special: np.ndarray
    content: np.ndarray
    negligible: np.ndarray
    risen: np.ndarray
    fallen: np.ndarray
    share_positive: np.ndarray
    mean_difference: np.ndarray
    expected_base: np.ndarray
    expected_finetuned: np.ndarray
    log_odds: np.ndarray
    log_odds_z: np.ndarray
    positions: int

    @property
    def shown(self) -> np.ndarray:
        """Entries that lists show by default: neither special nor negligible under both models."""
        return ~(self.special | self.negligible)

    def order(self, ordering: str, sign: str) -> np.ndarray:
        """Indices of the entries that moved in that direction, strongest first; entries without any movement are left
        out.
        """
        if ordering == "top_k_occurring":
            count = self.risen if sign == "risen" else self.fallen
            # Ties (many tokens at 0 or 100 %) are put in order by the mean difference.
            signed = self.mean_difference if sign == "risen" else -self.mean_difference
            indices = np.lexsort((-signed, -count))
            return indices[count[indices] > 0]
        values = {
            "fraction_positive_diff": self.share_positive,
            "mean_difference": self.mean_difference,
            "log_odds": self.log_odds,
            "log_odds_z": self.log_odds_z,
        }[ordering]
        direction = values if ordering == "log_odds_z" else self.mean_difference
        moved = (direction > 0) if sign == "risen" else (direction < 0)
        signed, mean = (values, self.mean_difference) if sign == "risen" else (-values, -self.mean_difference)
        indices = np.lexsort((-mean, -signed))
        return indices[moved[indices]]

    def row(self, index: int, sign: str) -> dict[str, Any]:
        """The fields of a `TokenRow`."""
        count = self.risen if sign == "risen" else self.fallen
        return {
            "token": self.texts[index],
            "occurrence": round(100 * float(count[index]) / max(1, self.positions), 3),
            "share_positive": round(float(self.share_positive[index]), 4),
            "mean_difference": round(float(self.mean_difference[index]), 4),
            "log_odds": round(float(self.log_odds[index]), 4),
            "log_odds_z": round(float(self.log_odds_z[index]), 3),
        }


NEGLIGIBLE_SHARE = 0.25
"""A token that both models expect less often than this share of what equal chances for all tokens would give was never
a candidate: its logit difference moves no text."""


def make_entries(
    texts: list[str],
    special: np.ndarray,
    content: np.ndarray,
    counts: tuple[np.ndarray, np.ndarray],
    means: tuple[np.ndarray, np.ndarray],
    expected: tuple[np.ndarray, np.ndarray],
    positions: int,
) -> Entries:
    """Entries from counts (risen, fallen), means (share positive, mean difference) and expected occurrences (base,
    finetuned).
    """
    base, finetuned = expected
    floor = NEGLIGIBLE_SHARE * positions / len(texts)
    log_odds = shrunken_log_odds(base, finetuned, PRIOR_PER_THOUSAND * positions / 1000)
    negligible = np.maximum(base, finetuned) < floor
    z = log_odds_z(base, finetuned, positions)
    return Entries(texts, special, content, negligible, *counts, *means, base, finetuned, log_odds, z, positions)
