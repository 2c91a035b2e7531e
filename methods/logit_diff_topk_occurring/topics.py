"""Topics among the tokens that rose: non-negative matrix factorisation of positions x tokens. NumPy, SciPy and
scikit-learn; no torch.

A row is a position, a column a token that was ever among the top K and is shown in lists; an entry is the positive
logit difference (or 1). V ~ H W with H [positions, topics] and W [topics, columns] non-negative. Memory is O(positions
x K) for the sparse matrix.

How many topics there are is judged by stability: the factorisation is repeated on random halves of the texts, topics
are matched by the cosine of their token weights, and the largest number at which every topic comes again is taken (the
mean over topics would let a topic of noise through).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from diffing_mcp.methods.logit_diff_topk_occurring.schema import Factorisation, TopicEntries

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from diffing_mcp.methods.logit_diff_topk_occurring.occurrences import KeptPositions

STABLE = 0.8
"""Cosine of each topic with its match in random halves of the texts (mean over halves) from which on a number of topics
counts as stable.
"""
REPEATS = 4
MOST_COLUMNS = 5000
"""Tokens with the largest sums that take part."""
ORTHOGONAL_WEIGHT = 1.0
_ITERATIONS = 120
_TINY = 1e-12


@dataclass(frozen=True)
class TopicMatrix:
    """V, and what its rows and columns are.

    Attributes:
        values: sparse [N, C] float64, without empty rows.
        rows: [N] index of each row among the kept positions.
        columns: [C] token id of each column.
    """

    values: csr_matrix
    rows: np.ndarray
    columns: np.ndarray


@dataclass(frozen=True)
class Topics:
    """A factorisation with unit-length rows of W, topics in order of falling mass.

    Attributes:
        activations: H [N, T]; weights: W [T, C].
        stability: [T] mean cosine of each topic with its match in random halves; nan where it was not measured.
        curve: number of topics -> stability of the least stable of them.
    """

    activations: np.ndarray
    weights: np.ndarray
    stability: np.ndarray
    curve: dict[int, float]

    @property
    def contributions(self) -> np.ndarray:
        """[N, T] sum of a row's entries that each topic explains: H * (sum of W over columns)."""
        return self.activations * self.weights.sum(axis=1)

    @property
    def mass(self) -> np.ndarray:
        """[T] share (0 to 1) of all explained entries."""
        total = self.contributions.sum(axis=0)
        return total / max(_TINY, float(total.sum()))

    @property
    def prevalence(self) -> np.ndarray:
        """[T] share (0 to 1) of the rows to which each topic contributes most."""
        return np.bincount(self.contributions.argmax(axis=1), minlength=len(self.weights)) / max(
            1, len(self.activations)
        )

    @property
    def concentration(self) -> np.ndarray:
        """[T] 1 - H(p) / log(C) with p the weights as shares: 1 = a single token, 0 = all tokens alike."""
        shares = self.weights / np.maximum(self.weights.sum(axis=1, keepdims=True), _TINY)
        entropy = -(shares * np.log(np.maximum(shares, _TINY))).sum(axis=1)
        return 1 - entropy / np.log(max(2, self.weights.shape[1]))

    @property
    def cosines(self) -> np.ndarray:
        """[T, T] cosine of the topics' weights."""
        return self.weights @ self.weights.T


def topic_matrix(kept: KeptPositions, shown: np.ndarray, entries: TopicEntries) -> TopicMatrix:
    """V of the kept positions; `shown` [V] bool says which tokens may be columns."""
    from scipy.sparse import csr_matrix

    rows = np.repeat(np.arange(len(kept.samples)), kept.indices.shape[1])
    columns, values = kept.indices.ravel(), kept.values.ravel().astype(np.float64)
    used = (values > 0) & shown[columns]
    rows, columns, values = rows[used], columns[used], values[used]
    if entries == "occurrence":
        values = np.ones_like(values)
    totals = np.bincount(columns, weights=values, minlength=len(shown))
    names = np.sort(np.argsort(-totals, kind="stable")[:MOST_COLUMNS])
    names = names[totals[names] > 0]
    place = np.full(len(shown), -1)
    place[names] = np.arange(len(names))
    used = place[columns] >= 0
    filled, compact = np.unique(rows[used], return_inverse=True)
    matrix = csr_matrix((values[used], (compact, place[columns[used]])), shape=(len(filled), len(names)))
    return TopicMatrix(matrix, filled, names)


def factorise(values: csr_matrix, topics: int, kind: Factorisation, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """H [N, T] and W [T, C] with unit-length rows of W (all zero for a topic that vanished), non-negative."""
    if kind == "orthogonal":
        return _orthogonal(values, topics, seed)
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    # Multiplicative updates cannot leave zero, so KL starts from a filled initialisation.
    arguments: dict[str, Any] = (
        {"solver": "cd"} if kind == "frobenius" else {"solver": "mu", "beta_loss": "kullback-leibler"}
    )
    model = NMF(topics, init="nndsvda", random_state=seed, max_iter=_ITERATIONS, tol=1e-3, **arguments)
    # A residual of exactly zero may come out as a tiny negative square.
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", ConvergenceWarning)
        activations = model.fit_transform(values)
    return _unit_rows(activations, model.components_)


def _unit_rows(activations: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.linalg.norm(weights, axis=1)
    return activations * lengths, weights / np.maximum(lengths, _TINY)[:, None]


def _orthogonal(values: csr_matrix, topics: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Least squares with a penalty on overlap, |V - H W|^2 + c * sum over i != j of w_i . w_j, by multiplicative
    updates (as in Lee and Seung 2001; the penalty's gradient is non-negative and joins the denominator), so that no
    entry can become negative. Rows of W are set to unit length after each step; c is in units of the mean squared
    activation, so that it does not depend on the size of the differences."""
    # The plain factorisation is the start, with a little everywhere, because these updates cannot leave zero.
    activations, weights = (part + 1e-3 * part.mean() for part in factorise(values, topics, "frobenius", seed))
    activations, weights = _unit_rows(activations, weights)
    others = 1 - np.eye(topics)
    for _ in range(_ITERATIONS):
        activations *= (values @ weights.T) / np.maximum(activations @ (weights @ weights.T), _TINY)
        gram = activations.T @ activations
        penalty = ORTHOGONAL_WEIGHT * np.trace(gram) / topics
        weights *= (values.T @ activations).T / np.maximum(gram @ weights + penalty * (others @ weights), _TINY)
        activations, weights = _unit_rows(activations, weights)
    return activations, weights


def matched_cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[T] cosine of each topic of `first` [T, C] (unit rows) with its partner in `second`, under the pairing with the
    largest sum.
    """
    from scipy.optimize import linear_sum_assignment

    cosines = first @ second.T
    rows, columns = linear_sum_assignment(-cosines)
    return cosines[rows, columns]


def find_topics(
    matrix: TopicMatrix,
    samples: np.ndarray,
    topics: int,
    most: int,
    kind: Factorisation,
    seed: int,
    progress: Callable[[], None] = lambda: None,
) -> Topics | None:
    """Topics of V; None when there is too little to factorise.

    Args:
        samples: [N] which text each row comes from; halves are halves of the texts.
        topics: their number; 0 chooses the largest number up to `most` that is stable.
        progress: called between factorisations (it raises when the work is cancelled).
    """
    texts = np.unique(samples)
    limit = min(matrix.values.shape)
    if limit < 2 or len(texts) < 4 or not matrix.values.nnz:
        return None
    numbers = [min(topics, limit)] if topics else list(range(1, min(most, limit) + 1))
    halves = _halves(samples, texts, seed)
    found: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for number in numbers:
        progress()
        activations, weights = factorise(matrix.values, number, kind, seed)
        cosines = []
        for repeat, half in enumerate(halves):
            progress()
            if min(len(half), matrix.values.shape[1]) >= number:
                cosines.append(
                    matched_cosines(weights, factorise(matrix.values[half], number, kind, seed + repeat + 1)[1])
                )
        found[number] = activations, weights, np.mean(cosines, axis=0) if cosines else np.full(number, np.nan)
    curve = {number: float(stability.min()) for number, (_, _, stability) in found.items()}
    stable = [number for number, value in curve.items() if value >= STABLE]
    activations, weights, stability = found[max(stable) if stable else numbers[0]]
    order = np.argsort(-(activations.sum(axis=0) * weights.sum(axis=1)), kind="stable")
    return Topics(activations[:, order], weights[order], stability[order], curve)


def _halves(samples: np.ndarray, texts: np.ndarray, seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [np.flatnonzero(np.isin(samples, random.permutation(texts)[: len(texts) // 2])) for _ in range(REPEATS)]


def exemplars(topics: Topics, samples: np.ndarray, topic: int, count: int) -> np.ndarray:
    """Rows to which the topic contributes most, at most one a text, strongest first."""
    strength = topics.contributions[:, topic]
    order = np.argsort(-strength, kind="stable")
    order = order[strength[order] > 0]
    _, first = np.unique(samples[order], return_index=True)
    return order[np.sort(first)[:count]]
