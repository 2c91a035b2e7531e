"""How far two models differ over a set of prompts, with the prompt as the unit. Torch-free.

Several answers to one prompt say less than as many prompts: what is drawn at random is the prompt, so answers count
within their prompt. A p-value comes from swapping the models prompt by prompt; intervals widen by the design effect of
answers that go together.

SciPy is imported where it is used: the server lists tools, whose schemas name these classes, before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from pydantic import BaseModel, Field

from diffing_mcp.methods.texts.swaps import RANDOM_PATTERNS, swap_p_values

LEVEL = 0.05
FEWEST_PROMPTS = 6
"""With fewer prompts no outcome has a two-sided p-value below 0.05: 2 / 2**5 is 0.0625."""
ENOUGH_PROMPTS = 8
"""With so many, two may stay as they are: 2 / 2**6 is 0.03."""


class RateDifference(BaseModel):
    """How often something was counted in the answers of both sides."""

    prompts: int
    answers: int = Field(description="Answers of each side.")
    base: int = Field(description="Answers of base that were counted.")
    finetuned: int
    difference: float = Field(description="Rate of finetuned minus rate of base.")
    low: float = Field(description="95 % interval of the difference, prompts as the unit.")
    high: float
    p: float = Field(description="Two-sided, models swapped prompt by prompt: the one that counts.")
    p_answers: float = Field(description="Fisher's exact test over answers: speaks of these very prompts only.")


class MeanDifference(BaseModel):
    """A number of each prompt under both sides."""

    prompts: int
    base: float = Field(description="Mean over prompts.")
    finetuned: float
    difference: float
    low: float | None = Field(description="95 % interval (Student's t over prompts); None for a single prompt.")
    high: float | None
    p: float = Field(description="Two-sided, models swapped prompt by prompt.")


def rate_difference(base: Sequence[int], finetuned: Sequence[int], samples: int) -> RateDifference:
    """Compare how many of `samples` answers to each prompt were counted on the two sides.

    Args:
        base, finetuned: counted answers of each prompt, 0 to `samples`; the same prompts in the same order.
    """
    from scipy import stats

    here, there = np.asarray(finetuned, dtype=float), np.asarray(base, dtype=float)
    prompts, answers = len(here), len(here) * samples
    hits = [int(there.sum()), int(here.sum())]
    low, high = _interval(there / samples, here / samples, samples)
    table = [[hits[1], answers - hits[1]], [hits[0], answers - hits[0]]]
    return RateDifference(
        prompts=prompts,
        answers=answers,
        base=hits[0],
        finetuned=hits[1],
        difference=(hits[1] - hits[0]) / answers,
        low=low,
        high=high,
        p=swap_p(here - there),
        p_answers=float(stats.fisher_exact(table).pvalue),
    )


def mean_difference(base: Sequence[float], finetuned: Sequence[float]) -> MeanDifference:
    """Compare a number of each prompt (the same prompts in the same order)."""
    from scipy import stats

    here, there = np.asarray(finetuned, dtype=float), np.asarray(base, dtype=float)
    changes = here - there
    low = high = None
    if len(changes) > 1:
        half = float(stats.t.ppf(1 - LEVEL / 2, len(changes) - 1) * stats.sem(changes))
        low, high = float(changes.mean()) - half, float(changes.mean()) + half
    return MeanDifference(
        prompts=len(changes),
        base=float(there.mean()),
        finetuned=float(here.mean()),
        difference=float(changes.mean()),
        low=low,
        high=high,
        p=swap_p(changes),
    )


def swap_p(changes: Sequence[float] | np.ndarray) -> float:
    """Two-sided p-value of one number a prompt (see `diffing_mcp.methods.texts.swaps`)."""
    return float(swap_p_values(np.asarray(changes, dtype=float)[None])[0][0])


def apart_p(changes: Sequence[float], others: Sequence[float]) -> float:
    """Two-sided p-value that two sets of prompts move alike: all prompts dealt to the sets anew, in every way or in
    9,999 random ones.
    """
    pooled, size = np.array([*changes, *others], dtype=float), len(changes)
    count = len(pooled)
    if math.comb(count, size) <= RANDOM_PATTERNS:
        chosen = np.array(list(combinations(range(count), size)))
    else:
        dealt = np.random.default_rng(0).permuted(np.tile(np.arange(count), (RANDOM_PATTERNS + 1, 1)), axis=1)
        dealt[0] = np.arange(count)  # what was observed is one of them
        chosen = dealt[:, :size]
    sums = pooled[chosen].sum(axis=1)
    distances = np.abs(sums / size - (pooled.sum() - sums) / (count - size))
    observed = abs(float(np.mean(changes)) - float(np.mean(others)))
    return float(np.mean(distances >= observed - 1e-9))


def _interval(base: np.ndarray, finetuned: np.ndarray, samples: int) -> tuple[float, float]:
    """95 % interval of the difference of two rates: Wilson's interval of each side with the effective number of answers
    (Korn and Graubard), combined by Newcombe's method. That both sides answer the same prompts is not used, which makes
    it rather too wide than too narrow.
    """
    from scipy import stats

    effect = _design_effect((base, finetuned), samples)
    effective = base.size * samples / effect
    tail = 1 - LEVEL / 2
    # Few prompts leave the design effect uncertain, unless it is the largest there is: then prompts are counted.
    z = float(stats.norm.ppf(tail) if effect == samples else stats.t.ppf(tail, base.size - 1))
    (p, low, high), (q, lower, higher) = (_wilson(float(rates.mean()), effective, z) for rates in (finetuned, base))
    return max(-1.0, p - q - math.hypot(p - low, higher - q)), min(1.0, p - q + math.hypot(high - p, q - lower))


def _design_effect(sides: Sequence[np.ndarray], samples: int) -> float:
    """1 + (samples - 1) times the intraclass correlation of answers to one prompt (analysis of variance, both sides
    pooled): from 1 (answers are as good as prompts) to `samples` (only prompts count), which also stands where all
    answers of a side agree and nothing can be known of it.
    """
    if samples == 1:
        return 1.0
    between = within = 0.0
    for rates in sides:
        between += samples * float(rates.var()) * rates.size
        within += samples * float((rates * (1 - rates)).sum())
    freedom = (rates.size - 1) * len(sides)
    if between + within == 0 or freedom == 0:
        return float(samples)
    between, within = between / freedom, within / (rates.size * (samples - 1) * len(sides))
    correlation = (between - within) / (between + (samples - 1) * within)
    return 1 + (samples - 1) * min(1.0, max(0.0, correlation))


def _wilson(rate: float, count: float, z: float) -> tuple[float, float, float]:
    """The rate with its Wilson interval, for a count that need not be whole."""
    middle = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2))
    return rate, max(0.0, middle - half), min(1.0, middle + half)
