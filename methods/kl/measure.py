"""Divergences of every position while the text streams by, and the positions and texts where the models differ most.

With p = base, q = finetuned, r = log q - log p (float32):
    KL(q||p) = sum q r,   KL(p||q) = - sum p r,
    JS = 1/2 sum [(p + q) h - min(p, q) |r|]   with h = log(max(p, q) / m) = log 2 - log(1 + min/max),  m = (p + q) / 2,
which is exactly 0 where p = q, never overflows, and costs one logarithm. Rounding may leave sums of tiny terms below
zero: they are clamped to 0. Memory: O(tokens) scalars, O(vocabulary) sums, O(examples).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from diffing_mcp.methods.kl.schema import KLResult, Metric, Spread, TextRow, TokenMove, TokenRow, amount_of, headline_of
from diffing_mcp.methods.texts.words import TokenNames
from diffing_mcp.preprocessing.batches import Accumulator, LogitChunk, PairedBatch
from diffing_mcp.preprocessing.expected_tokens import ExpectedTokens
from diffing_mcp.preprocessing.positions import CorpusPositions
from diffing_mcp.preprocessing.repeated_pass import repeated_pass

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import RunWriter
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


@dataclass(frozen=True)
class Place:
    """A position (its index among all) or a text, with its KL(finetuned || base) and the tokens that moved there."""

    score: float
    index: int
    moved: Movement


def keep_highest(
    kept: list[Place], size: int, indices: np.ndarray, scores: np.ndarray, moved: Callable[[int], Movement]
) -> None:
    """Take the places with these indices and scores [N] into the `size` highest ones above zero, kept highest first;
    ties go to the earlier place. `moved` is asked only for rows that enter.
    """
    for row in np.argsort(-scores).tolist():
        if not scores[row] > (kept[-1].score if len(kept) == size else 0.0):
            break
        place = Place(float(scores[row]), int(indices[row]), moved(row))
        insort(kept, place, key=lambda each: (-each.score, each.index))
        del kept[size:]


class KLAccumulator(Accumulator):
    """See the module. `values` by metric are in the order of the text."""

    needs_logits = True

    def __init__(self, pair: LoadedPair, corpus: TokenizedCorpus, examples: int) -> None:
        self.corpus = corpus
        self.positions = CorpusPositions(corpus, pair.device)
        self.values = {metric: np.zeros(corpus.tokens, dtype=np.float32) for metric in get_args(Metric)}
        self.expected = ExpectedTokens(FOLDS, pair.vocab_size, pair.device)
        self.examples = examples
        self.top_tokens: list[Place] = []
        self.top_texts: list[Place] = []

    def update_logits(self, chunk: LogitChunk) -> None:
        """Take in a chunk of positions."""
        indices = self.positions.indices(chunk.sample_indices, chunk.positions).cpu().numpy()
        for values, found in zip(self.values.values(), divergences(chunk), strict=True):
            values[indices] = found.cpu().numpy()
        self.expected.add(chunk)
        scores = self.values["kl_finetuned_base"][indices]
        base, finetuned = chunk.base_probs, chunk.finetuned_probs
        keep_highest(self.top_tokens, self.examples, indices, scores, lambda row: movement(base[row], finetuned[row]))

    def update(self, batch: PairedBatch) -> None:
        """A batch is complete: its texts compete for the list of texts that differ most."""
        samples, scores = batch.sample_indices.cpu().numpy(), self.values["kl_finetuned_base"]
        starts, lengths = self.positions.starts[samples], self.positions.lengths[samples]
        texts = (scores[start : start + length] for start, length in zip(starts, lengths, strict=True))
        means = np.array([values.mean(dtype=np.float64) for values in texts])
        compared = batch.compared_rows

        def moved(row: int) -> Movement:
            rows = compared[batch.row_samples[compared] == int(samples[row])]
            base = torch.zeros_like(self.expected.base[0], dtype=torch.float32)
            finetuned = torch.zeros_like(base)
            for part in rows.split(batch.chunk_rows):
                chunk = batch.chunk(part)
                base += chunk.base_probs.sum(dim=0)
                finetuned += chunk.finetuned_probs.sum(dim=0)
            return movement(base / len(rows), finetuned / len(rows))

        keep_highest(self.top_texts, max(5, self.examples // 4), samples, means, moved)


SHOWN = 6
"""Rows of each list in the result; the views give more."""

OVERALL = 8
CONTEXT_TOKENS = 24
TEXT_CHARACTERS = 240

OUTLIER_DEVIATIONS = 8.0
OUTLIER_NATS = 0.1
"""What a text must exceed to lie far above the rest. The control organism of the embedded model (trained, nothing
taught) has texts up to 6.1 deviations; a text with a trigger, at 2 nats among texts at 0.035, has 13."""

FAR_FACTOR, FAR_CHANGE = 10.0, 1e-3
"""By which factor, and by how much, a token's mean probability must change to be said far more or less often; half of
both in every fold of texts. The control organism changes no word by more than a factor of 2.5; the taught ones raise
their topic's words by 60 to 1,400."""


def summarise(accumulator: KLAccumulator, pair: LoadedPair, run: RunWriter) -> KLResult:
    """Store the per-token and per-text tables and the position profile, and judge what stands out."""
    corpus, positions, values = accumulator.corpus, accumulator.positions, accumulator.values
    samples, counts = positions.samples, positions.lengths
    name = TokenNames(pair.tokenizer)

    def moves(changes: Iterable[Change]) -> list[TokenMove]:
        return [TokenMove(token=name(token), base=base, finetuned=finetuned) for token, base, finetuned in changes]

    def text(ids: list[int]) -> str:
        return str(pair.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def at(place: Place, columns: dict[Metric, np.ndarray]) -> dict[str, Any]:
        """What rows of positions and of texts have in common."""
        moved = {"rose": moves(place.moved.rose), "fell": moves(place.moved.fell)}
        return moved | {key: float(array[place.index]) for key, array in columns.items()}

    per_text = {key: positions.means_by_text(array) for key, array in values.items()}
    texts = [text(ids[start:]) for ids, start in zip(corpus.ids, corpus.content_start, strict=True)]
    profile = _profile(positions, values)
    top_tokens = []
    for place in accumulator.top_tokens:
        sample, position = int(samples[place.index]), int(positions.numbers[place.index])
        read, rest = corpus.split_after(sample, position)
        context, following = text(read[-CONTEXT_TOKENS:]), name(rest[0]) if rest else None
        top_tokens.append(
            TokenRow(sample=sample, position=position, context=context, next_token=following, **at(place, values))
        )
    top_texts = [
        TextRow(
            sample=place.index,
            tokens=int(counts[place.index]),
            text=texts[place.index][:TEXT_CHARACTERS],
            **at(place, per_text),
        )
        for place in accumulator.top_texts
    ]
    tokens = name.column(positions.token_ids)
    run.add_table("tokens", {"sample": samples, "position": positions.numbers, "token": tokens, **values})
    run.add_table("texts", {"sample": np.arange(len(counts)), "tokens": counts, **per_text, "text": texts})
    run.add_rows("top_tokens", top_tokens, TokenRow)
    run.add_rows("top_texts", top_texts, TextRow)
    for key, array in profile.items():
        run.add_array(f"positions.{key}", array)

    expected, special = accumulator.expected, set(getattr(pair.tokenizer, "all_special_ids", None) or ())
    base, finetuned = (each.sum(dim=0) / len(samples) for each in (expected.base, expected.finetuned))
    overall = movement(base, finetuned, OVERALL)
    more, less = (moves(found) for found in far_changes(expected, special))
    highest = {metric: float(array.max(initial=0.0)) for metric, array in values.items()}
    noise = rounding_noise(pair, corpus) if highest["kl_finetuned_base"] or highest["kl_base_finetuned"] else 0.0
    outliers = len(outlying(per_text["kl_finetuned_base"], max(OUTLIER_NATS, 10 * noise)))
    spreads = {key: _spread(array, samples, counts) for key, array in values.items()}
    mean = spreads["kl_finetuned_base"].mean
    stands_out = bool(more or less or outliers)
    amount = amount_of(mean, highest["kl_finetuned_base"], noise, stands_out)
    return KLResult(
        stands_out=stands_out,
        headline=headline_of(amount, mean, noise, (outliers, len(counts)), more, less),
        amount=amount,
        tokens=len(samples),
        samples=len(counts),
        dropped=corpus.dropped.count,
        position_origin=corpus.position_origin,
        per_text=_spread(per_text["kl_finetuned_base"], np.arange(len(counts)), np.ones(len(counts))),
        rounding_noise=noise,
        outlying_texts=outliers,
        first_positions=[float(value) for value in profile["kl_finetuned_base"][:8]],
        far_more_often=more,
        far_less_often=less,
        rose=moves(overall.rose),
        fell=moves(overall.fell),
        top_tokens=top_tokens[:SHOWN],
        top_texts=top_texts[:SHOWN],
        **spreads,
    )


def outlying(per_text: np.ndarray, floor: float) -> np.ndarray:
    """Indices of texts above `floor` nats whose log mean divergence lies more than `OUTLIER_DEVIATIONS` robust standard
    deviations (1.4826 MAD) above the median.

    On a diffuse change, trained or not, the mean divergences of texts are close to log-normal: none is expected to lie
    there.
    """
    if len(per_text) < 8:
        return np.zeros(0, dtype=np.int64)
    logs = np.log(np.maximum(per_text, 1e-7))  # float32 sums leave nothing below this
    middle = float(np.median(logs))
    # A floor: texts that all differ by the same amount have no spread to be judged by.
    deviation = max(1.4826 * float(np.median(np.abs(logs - middle))), 0.05)
    return np.flatnonzero((per_text > floor) & (logs > middle + OUTLIER_DEVIATIONS * deviation))


def rounding_noise(pair: LoadedPair, corpus: TokenizedCorpus) -> float:
    """Mean KL, in nats, between two computations of the finetuned model over the same tokens."""
    total, rows = 0.0, 0
    for chunk in repeated_pass(pair, corpus):
        total += float(divergences(chunk)[0].sum())
        rows += len(chunk)
    return total / max(1, rows)


def far_changes(expected: ExpectedTokens, special: set[int]) -> tuple[list[Change], list[Change]]:
    """Tokens (id, mean probability under base, under finetuned) that became far more and far less probable over the
    whole corpus, in every fold of texts, most changed first; special tokens apart, because every chat finetune moves
    the end of a turn."""
    if not expected.rows.all():
        return [], []
    rows = torch.from_numpy(expected.rows).to(expected.base).unsqueeze(1)
    base, finetuned = expected.base / rows, expected.finetuned / rows
    means = [(values * rows).sum(dim=0) / rows.sum() for values in (base, finetuned)]
    found: list[list[Change]] = []
    for (low, mean_low), (high, mean_high) in permutations(((base, means[0]), (finetuned, means[1]))):
        overall = (mean_high >= FAR_FACTOR * mean_low) & (mean_high - mean_low >= FAR_CHANGE)
        everywhere = ((high >= FAR_FACTOR / 2 * low) & (high - low >= FAR_CHANGE / 2)).all(dim=0)
        ids = (overall & everywhere).nonzero().squeeze(1)
        ids = ids[torch.argsort(mean_high[ids] - mean_low[ids], descending=True)]
        changes = zip(ids.tolist(), means[0][ids].tolist(), means[1][ids].tolist(), strict=True)
        found.append([change for change in changes if change[0] not in special][:OVERALL])
    return found[0], found[1]


def _spread(values: np.ndarray, groups: np.ndarray, counts: np.ndarray) -> Spread:
    """Mean and quantiles over values; the mean's standard error treats each group (text) as one observation (ratio
    estimator).
    """
    mean = float(values.mean(dtype=np.float64))
    number = len(counts)
    residuals = np.bincount(groups, weights=values.astype(np.float64) - mean, minlength=number)
    error = float(np.sqrt((residuals**2).sum() * number / (number - 1)) / len(values)) if number > 1 else 0.0
    median, p90, p99 = (float(value) for value in np.quantile(values, [0.5, 0.9, 0.99]))
    return Spread(mean=mean, standard_error=error, median=median, p90=p90, p99=p99, max=float(values.max()))


def _profile(positions: CorpusPositions, values: dict[Metric, np.ndarray]) -> dict[str, np.ndarray]:
    """For each position: how many tokens, the means, and the standard error of the mean of KL(finetuned || base)."""
    counts = np.bincount(positions.numbers)
    means: dict[str, np.ndarray] = {name: positions.means_by_number(array) for name, array in values.items()}
    squares = positions.means_by_number(values["kl_finetuned_base"].astype(np.float64) ** 2)
    variance = np.maximum(squares - means["kl_finetuned_base"] ** 2, 0)
    return {"count": counts, **means, "standard_error": np.sqrt(variance / np.maximum(counts - 1, 1))}
