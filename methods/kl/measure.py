"""Divergences of every position while the text streams by, and the positions and texts where the models differ most.

With p = base, q = finetuned, r = log q - log p (float32):
    KL(q||p) = sum q r,   KL(p||q) = - sum p r,
    JS = 1/2 sum [(p + q) h - min(p, q) |r|]   with h = log(max(p, q) / m) = log 2 - log(1 + min/max),  m = (p + q) / 2,
which is exactly 0 where p = q, never overflows, and costs one logarithm. Rounding may leave sums of tiny terms below
zero: they are clamped to 0. Memory: O(tokens) scalars, O(vocabulary) sums, O(examples).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from itertools import permutations
from typing import TYPE_CHECKING, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from diffing_mcp.methods.kl.schema import KLResult, Metric, Spread, TextRow, TokenMove, TokenRow, amount_of, headline_of
from diffing_mcp.methods.texts.words import TokenNames
from diffing_mcp.preprocessing.batches import Accumulator, LogitChunk, PairedBatch, Scratch
from diffing_mcp.preprocessing.padding import padded

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

NOISE_SAMPLES = 4


def summarise(accumulator: KLAccumulator, pair: LoadedPair, run: RunWriter) -> KLResult:
    """Store the per-token and per-text tables and the position profile, and judge what stands out."""
    corpus = accumulator.corpus
    decode = pair.tokenizer.decode

    name = TokenNames(pair.tokenizer)

    def moves(changes: Iterable[Change]) -> list[TokenMove]:
        return [TokenMove(token=name(token), base=base, finetuned=finetuned) for token, base, finetuned in changes]

    order = np.lexsort((accumulator.positions, accumulator.samples))
    samples, positions = accumulator.samples[order], accumulator.positions[order]
    values = {metric: array[order] for metric, array in accumulator.values.items()}
    counts = np.bincount(samples, minlength=len(corpus.ids))
    starts = np.cumsum(counts) - counts  # every position of a text is there
    per_text = {
        key: np.bincount(samples, weights=array, minlength=len(counts)) / counts for key, array in values.items()
    }
    texts = [
        str(decode(ids[start:], clean_up_tokenization_spaces=False))
        for ids, start in zip(corpus.ids, corpus.content_start, strict=True)
    ]
    profile = _profile(positions, values)
    top_tokens = []
    for place in accumulator.top_tokens.places():
        ids, row = corpus.ids[place.sample], starts[place.sample] + place.position
        end = corpus.content_start[place.sample] + place.position + 1
        top_tokens.append(
            TokenRow(
                sample=place.sample,
                position=place.position,
                context=str(decode(ids[max(0, end - CONTEXT_TOKENS) : end], clean_up_tokenization_spaces=False)),
                next_token=name(ids[end]) if end < len(ids) else None,
                rose=moves(place.moved.rose),
                fell=moves(place.moved.fell),
                **{key: float(array[row]) for key, array in values.items()},
            )
        )
    top_texts = [
        TextRow(
            sample=place.sample,
            tokens=int(counts[place.sample]),
            text=texts[place.sample][:TEXT_CHARACTERS],
            rose=moves(place.moved.rose),
            fell=moves(place.moved.fell),
            **{key: float(array[place.sample]) for key, array in per_text.items()},
        )
        for place in accumulator.top_texts.places()
    ]
    tokens = name.column(accumulator.token_ids[order])
    run.add_table("tokens", {"sample": samples, "position": positions, "token": tokens, **values})
    run.add_table("texts", {"sample": np.arange(len(counts)), "tokens": counts, **per_text, "text": texts})
    run.add_rows("top_tokens", top_tokens, TokenRow)
    run.add_rows("top_texts", top_texts, TextRow)
    for key, array in profile.items():
        run.add_array(f"positions.{key}", array)

    total = max(1, accumulator.filled)
    overall = movement(
        accumulator.base_total.sum(dim=0) / total, accumulator.finetuned_total.sum(dim=0) / total, count=OVERALL
    )
    more, less = (
        moves(found) for found in far_changes(accumulator, set(getattr(pair.tokenizer, "all_special_ids", None) or ()))
    )
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
        tokens=accumulator.filled,
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
    """Mean KL, in nats, between two computations of the finetuned model over the same tokens: a batch of texts, and
    each text alone.

    Both are the same function in exact arithmetic, so this is what the model's dtype leaves undecided.
    """
    chosen = sorted(range(len(corpus.ids)), key=lambda index: len(corpus.ids[index]))[:NOISE_SAMPLES]
    device = torch.device(pair.device)
    batch_ids, batch_mask = (each.to(device) for each in padded([corpus.ids[index] for index in chosen], 0))
    total, rows = 0.0, 0
    with torch.inference_mode():
        together = pair.forward("finetuned", batch_ids, batch_mask).logits
        for row, index in enumerate(chosen):
            length = len(corpus.ids[index])
            ids, mask = batch_ids[row : row + 1, :length], batch_mask[row : row + 1, :length]
            alone = pair.forward("finetuned", ids, mask).logits
            if alone is None or together is None:
                raise RuntimeError("a forward pass that was asked for logits gave none")
            positions = torch.arange(length, device=device).unsqueeze(0) - corpus.content_start[index]
            batch = PairedBatch(
                input_ids=ids,
                attention_mask=mask,
                positions=positions.clamp_min(-1),
                sample_indices=torch.tensor([index], device=device),
                base_logits=alone,
                finetuned_logits=together[row : row + 1, :length].contiguous(),
                scratch=Scratch(8, alone.shape[-1], device),
            )
            for chunk in batch.logit_chunks():
                total += float(divergences(chunk)[0].sum())
                rows += len(chunk)
    return total / max(1, rows)


def far_changes(accumulator: KLAccumulator, special: set[int]) -> tuple[list[Change], list[Change]]:
    """Tokens (id, mean probability under base, under finetuned) that became far more and far less probable over the
    whole corpus, in every fold of texts, most changed first; special tokens apart, because every chat finetune moves
    the end of a turn."""
    if (accumulator.fold_rows > 0).sum() < FOLDS:
        return [], []
    rows = torch.from_numpy(accumulator.fold_rows).to(accumulator.base_total).unsqueeze(1)
    base, finetuned = accumulator.base_total / rows, accumulator.finetuned_total / rows
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


def _profile(positions: np.ndarray, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """For each position: how many tokens, the means, and the standard error of the mean of KL(finetuned || base)."""
    counts = np.bincount(positions)
    profile: dict[str, np.ndarray] = {"count": counts}
    seen = np.maximum(counts, 1)
    for name, array in values.items():
        profile[name] = np.bincount(positions, weights=array.astype(np.float64)) / seen
    squares = np.bincount(positions, weights=values["kl_finetuned_base"].astype(np.float64) ** 2) / seen
    profile["standard_error"] = np.sqrt(
        np.maximum(squares - profile["kl_finetuned_base"] ** 2, 0) / np.maximum(counts - 1, 1)
    )
    return profile
