"""Divergences of every position while the text streams by, and the positions and texts where the models differ most.

With p = base, q = finetuned, r = log q - log p (float32):
    KL(q||p) = sum q r,   KL(p||q) = - sum p r,
    JS = 1/2 sum [(p + q) h - min(p, q) |r|]   with h = log(max(p, q) / m) = log 2 - log(1 + min/max),  m = (p + q) / 2,
which is exactly 0 where p = q, never overflows, and costs one logarithm. Rounding may leave sums of tiny terms below
zero: they are clamped to 0. Memory: O(tokens) scalars, O(vocabulary) sums, O(examples).
"""

from __future__ import annotations

from bisect import insort
from typing import TYPE_CHECKING, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from diffing_mcp.methods.kl.schema import Metric
from diffing_mcp.preprocessing.batches import Accumulator, LogitChunk, PairedBatch

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus

MOVERS = 5
"""Tokens kept in each direction for an example."""

FOLDS = 4
"""Texts are dealt to this many groups by index; a token counts as said far more (or less) often only when it is so in
every group.
"""

_TINY = torch.finfo(torch.float32).tiny


def divergences(chunk: LogitChunk) -> tuple[Tensor, Tensor, Tensor]:
    """KL(finetuned || base), KL(base || finetuned) and JS of each row of a chunk, [R] float32, nats, >= 0: in the order
    of `Metric`.
    """
    ratio, base, finetuned = chunk.log_ratio, chunk.base_probs, chunk.finetuned_probs
    work, smaller = chunk.scratch("work"), chunk.scratch("smaller")
    forward = torch.mul(finetuned, ratio, out=work).sum(dim=1)
    backward = -torch.mul(base, ratio, out=work).sum(dim=1)
    # log 2 through the same kernel as the rows' logarithms, so that equal probabilities give exactly 0.
    log_two = torch.log1p(torch.ones_like(work[:1, :16]))[0, 0]
    torch.maximum(base, finetuned, out=work).clamp_min_(_TINY)
    torch.minimum(base, finetuned, out=smaller)
    torch.div(smaller, work, out=work).log1p_().sub_(log_two)  # -h
    total = chunk.scratch("total")
    halves = torch.add(base, finetuned, out=total).mul_(work).sum(dim=1)
    halves += smaller.mul_(torch.abs(ratio, out=total)).sum(dim=1)
    return forward.clamp_min_(0), backward.clamp_min_(0), halves.mul_(-0.5).clamp_min_(0)


Change = tuple[int, float, float]
"""A token id and its probability under base and finetuned."""


class Movement(NamedTuple):
    """Tokens whose probability moved most at one place, most moved first."""

    rose: list[Change]
    fell: list[Change]


def movement(base: Tensor, finetuned: Tensor, count: int = MOVERS) -> Movement:
    """The `count` tokens of one pair of distributions [V] that gained and that lost most probability (fewer when fewer
    moved).
    """
    directions = []
    for change in (finetuned - base, base - finetuned):
        values, ids = torch.topk(change, min(count, change.numel()))
        ids = ids[values > 0]
        directions.append(list(zip(ids.tolist(), base[ids].tolist(), finetuned[ids].tolist(), strict=True)))
    return Movement(*directions)


class Place(NamedTuple):
    """A position, or a text (position 0), with its KL(finetuned || base) and the tokens that moved there."""

    score: float
    sample: int
    position: int
    moved: Movement


class _Best:
    """The `size` places of highest score seen so far; ties go to the earlier place."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._rising: list[Place] = []

    @property
    def threshold(self) -> float:
        """A score must be above this to enter; zero never enters."""
        return self._rising[0].score if len(self._rising) == self.size else 0.0

    def offer(self, place: Place) -> None:
        insort(self._rising, place, key=lambda each: (each.score, -each.sample, -each.position))
        del self._rising[: -self.size]

    def places(self) -> list[Place]:
        """Highest score first."""
        return self._rising[::-1]


def runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Begins and ends of the stretches of equal values."""
    begins = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    return begins, np.r_[begins[1:], len(values)]


class KLAccumulator(Accumulator):
    """See the module. Per-position arrays are filled in the order of the pass: `values` by metric, and `samples`,
    `positions` and `token_ids`, which say what each entry is.
    """

    needs_logits = True

    def __init__(self, pair: LoadedPair, corpus: TokenizedCorpus, examples: int) -> None:
        self.corpus = corpus
        count = corpus.tokens
        self.values = {metric: np.zeros(count, dtype=np.float32) for metric in get_args(Metric)}
        self.samples = np.zeros(count, dtype=np.int32)
        self.positions = np.zeros(count, dtype=np.int32)
        self.token_ids = np.zeros(count, dtype=np.int32)
        self.filled = 0
        self._batch_begin = 0
        device = torch.device(pair.device)
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.base_total = torch.zeros(FOLDS, pair.vocab_size, dtype=wide, device=device)
        self.finetuned_total = torch.zeros_like(self.base_total)
        self.fold_rows = np.zeros(FOLDS, dtype=np.int64)
        self.top_tokens = _Best(examples)
        self.top_texts = _Best(max(5, examples // 4))

    def update_logits(self, chunk: LogitChunk) -> None:
        """Take in a chunk of positions."""
        place = slice(self.filled, self.filled + len(chunk))
        for values, found in zip(self.values.values(), divergences(chunk), strict=True):
            values[place] = found.cpu().numpy()
        scores = self.values["kl_finetuned_base"][place]
        self.samples[place] = chunk.sample_indices.cpu().numpy()
        self.positions[place] = chunk.positions.cpu().numpy()
        self.token_ids[place] = chunk.token_ids.cpu().numpy()
        self.filled += len(chunk)
        # The rows of a chunk come text by text: each text's are one slice.
        begins, ends = runs(self.samples[place])
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            fold = int(self.samples[place][begin]) % FOLDS
            self.base_total[fold] += chunk.base_probs[begin:end].sum(dim=0)
            self.finetuned_total[fold] += chunk.finetuned_probs[begin:end].sum(dim=0)
            self.fold_rows[fold] += end - begin
        for row in np.argsort(-scores):
            score = float(scores[row])
            if not score > self.top_tokens.threshold:
                break
            moved = movement(chunk.base_probs[row], chunk.finetuned_probs[row])
            self.top_tokens.offer(Place(score, int(self.samples[place][row]), int(self.positions[place][row]), moved))

    def update(self, batch: PairedBatch) -> None:
        """A batch is complete: its texts compete for the list of texts that differ most."""
        scores = self.values["kl_finetuned_base"][self._batch_begin : self.filled]
        samples = self.samples[self._batch_begin : self.filled]
        self._batch_begin = self.filled
        begins, ends = runs(samples)
        means = np.add.reduceat(scores.astype(np.float64), begins) / (ends - begins)
        for index in np.argsort(-means):
            if not means[index] > self.top_texts.threshold:
                break
            rows = batch.compared_rows[int(begins[index]) : int(ends[index])]
            base = torch.zeros_like(self.base_total[0], dtype=torch.float32)
            finetuned = torch.zeros_like(base)
            for part in rows.split(batch.chunk_rows):
                chunk = batch.chunk(part)
                base += chunk.base_probs.sum(dim=0)
                finetuned += chunk.finetuned_probs.sum(dim=0)
            moved = movement(base / len(rows), finetuned / len(rows))
            self.top_texts.offer(Place(float(means[index]), int(samples[begins[index]]), 0, moved))
