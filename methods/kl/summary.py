"""From the accumulated divergences to the stored run and its result."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cache
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffing_mcp.methods.kl.divergences import FOLDS, Change, KLAccumulator, divergences, movement
from diffing_mcp.methods.kl.schema import Amount, KLResult, Spread, TextRow, TokenMove, TokenRow
from diffing_mcp.preprocessing.batches import PairedBatch, Scratch

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus

SHOWN = 6
"""Rows of each list in the result; the views give more."""

OVERALL = 8
CONTEXT_TOKENS = 24
TEXT_CHARACTERS = 240

SMALL, MODERATE = 0.01, 0.1
"""Nats a token below which a mean divergence is called small, moderate."""

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

    @cache
    def name(token: int) -> str:
        return str(decode([token], clean_up_tokenization_spaces=False))

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
    tokens = _named(accumulator.token_ids[order], name)
    run.add_table("tokens", {"sample": samples, "position": positions, "token": tokens, **values})
    run.add_table("texts", {"sample": np.arange(len(counts)), "tokens": counts, **per_text, "text": texts})
    run.add_table("top_tokens", _columns(top_tokens, TokenRow))
    run.add_table("top_texts", _columns(top_texts, TextRow))
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
    amount = _amount(mean, highest["kl_finetuned_base"], noise, stands_out)
    return KLResult(
        stands_out=stands_out,
        headline=_headline(amount, mean, noise, (outliers, len(counts)), more, less),
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
    width = max(len(corpus.ids[index]) for index in chosen)
    padded = torch.zeros(len(chosen), width, dtype=torch.long)
    padded_mask = torch.zeros_like(padded)
    for row, index in enumerate(chosen):
        padded[row, : len(corpus.ids[index])] = torch.tensor(corpus.ids[index])
        padded_mask[row, : len(corpus.ids[index])] = 1
    padded, padded_mask = padded.to(device), padded_mask.to(device)
    total, rows = 0.0, 0
    with torch.inference_mode():
        together = pair.forward("finetuned", padded, padded_mask).logits
        for row, index in enumerate(chosen):
            length = len(corpus.ids[index])
            ids, mask = padded[row : row + 1, :length], padded_mask[row : row + 1, :length]
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


def _amount(mean: float, highest: float, noise: float, found: bool) -> Amount:
    if highest == 0.0:
        return "none"
    if mean <= 3 * noise and not found:
        return "rounding"
    return "small" if mean < SMALL else "moderate" if mean < MODERATE else "large"


def _headline(
    amount: Amount,
    mean: float,
    noise: float,
    outliers: tuple[int, int],
    more: list[TokenMove],
    less: list[TokenMove],
) -> str:
    if amount == "none":
        return "The two models predict exactly the same on this text: every divergence is 0."
    if amount == "rounding":
        return (
            f"Mean KL {mean:.2g} nats a token is no more than rounding ({noise:.2g} between two computations of one "
            "model): no difference seen on this text."
        )
    parts = [f"The models differ by {mean:.3g} nats a token on average ({amount})"]
    for moves, how in ((more, "more"), (less, "less")):
        if moves:
            named = ", ".join(json.dumps(move.token, ensure_ascii=False) for move in moves[:5])
            parts.append(f"the finetuned model says far {how} often: {named}")
    if outliers[0]:
        parts.append(f"{outliers[0]} of {outliers[1]} texts differ far more than the rest: read the top texts")
    if len(parts) == 1:
        parts.append("no single word or text stands out: the change is spread over all of them")
        if amount == "large":
            parts.append("so large a one shows in what the models write: read their answers")
    return "; ".join(parts) + "."


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


def _named(tokens: np.ndarray, name: Callable[[int], str]) -> Any:
    """Texts of many tokens as a dictionary-encoded column."""
    import pyarrow as pa

    unique, indices = np.unique(tokens, return_inverse=True)
    return pa.DictionaryArray.from_arrays(
        pa.array(indices.astype(np.int32)), pa.array([name(token) for token in unique.tolist()])
    )


def _columns(rows: list[Any], model: type[Any]) -> dict[str, Any]:
    """Columns of a table of pydantic rows; lists of moves as JSON text, which needs no schema when a table is empty."""
    import pyarrow as pa

    types = {int: pa.int64(), float: pa.float64()}
    columns: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        values = [row.model_dump()[name] for row in rows]
        if name in {"rose", "fell"}:
            values = [json.dumps(value, ensure_ascii=False) for value in values]
        columns[name] = pa.array(values, type=types.get(field.annotation, pa.string()))
    return columns
