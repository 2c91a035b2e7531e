"""From the accumulated divergences to the stored run and the result of `kl`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from diffing_mcp.methods.kl.accumulator import FOLDS, KLAccumulator, Movement, divergences, movement
from diffing_mcp.methods.kl.declaration import KLResult, Spread
from diffing_mcp.methods.kl.rows import TextRow, TokenMove, TokenRow
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
    names = _Names(pair.tokenizer)
    samples = accumulator.samples
    order = np.lexsort((accumulator.positions, samples))
    values = {
        "kl_finetuned_base": accumulator.forward[order],
        "kl_base_finetuned": accumulator.backward[order],
        "js": accumulator.js[order],
    }
    samples, positions, token_ids = samples[order], accumulator.positions[order], accumulator.token_ids[order]
    counts = np.bincount(samples, minlength=len(corpus.ids))
    per_text = {
        name: np.bincount(samples, weights=array, minlength=len(counts)) / counts for name, array in values.items()
    }

    run.add_table("tokens", {"sample": samples, "position": positions, "token": names.column(token_ids), **values})
    run.add_table(
        "texts",
        {
            "sample": np.arange(len(counts)),
            "tokens": counts,
            **per_text,
            "text": [_text(corpus, index, pair) for index in range(len(counts))],
        },
    )
    profile = _profile(positions, values)
    for name, array in profile.items():
        run.add_array(f"positions.{name}", array)

    place = {
        (int(sample), int(position)): row for row, (sample, position) in enumerate(zip(samples, positions, strict=True))
    }
    top_tokens = [
        _token_row(
            corpus,
            pair,
            names,
            sample,
            position,
            {name: float(array[place[sample, position]]) for name, array in values.items()},
            moved,
        )
        for _, sample, position, moved in accumulator.top_tokens.entries()
    ]
    top_texts = [
        TextRow(
            sample=sample,
            tokens=int(counts[sample]),
            text=_text(corpus, sample, pair)[:TEXT_CHARACTERS],
            **_moves(moved, names),
            **{name: float(array[sample]) for name, array in per_text.items()},
        )
        for _, sample, _, moved in accumulator.top_texts.entries()
    ]
    run.add_table("top_tokens", _columns(top_tokens, TokenRow))
    run.add_table("top_texts", _columns(top_texts, TextRow))

    total = max(1, accumulator.filled)
    overall = _moves(
        movement(
            accumulator.base_total.sum(dim=0) / total, accumulator.finetuned_total.sum(dim=0) / total, count=OVERALL
        ),
        names,
    )
    more, less = far_changes(accumulator, set(getattr(pair.tokenizer, "all_special_ids", None) or ()))
    noise = rounding_noise(pair, corpus) if accumulator.forward.any() or accumulator.backward.any() else 0.0
    outliers = outlying(per_text["kl_finetuned_base"], max(OUTLIER_NATS, 10 * noise))
    spreads = {name: _spread(array, samples, counts) for name, array in values.items()}
    mean = spreads["kl_finetuned_base"].mean
    amount = _amount(mean, float(accumulator.forward.max(initial=0.0)), noise, bool(more or less or len(outliers)))
    return KLResult(
        stands_out=bool(more or less or len(outliers)),
        headline=_headline(
            amount,
            mean,
            noise,
            (len(outliers), len(counts)),
            *([names(token) for token, _, _ in found] for found in (more, less)),
        ),
        amount=amount,
        tokens=accumulator.filled,
        samples=len(counts),
        dropped=corpus.dropped.count,
        position_origin=corpus.position_origin,
        per_text=_spread(per_text["kl_finetuned_base"], np.arange(len(counts)), np.ones(len(counts))),
        rounding_noise=noise,
        outlying_texts=len(outliers),
        first_positions=[float(value) for value in profile["kl_finetuned_base"][:8]],
        far_more_often=[
            TokenMove(token=names(token), base=base, finetuned=finetuned) for token, base, finetuned in more
        ],
        far_less_often=[
            TokenMove(token=names(token), base=base, finetuned=finetuned) for token, base, finetuned in less
        ],
        rose=[TokenMove.model_validate(move) for move in overall["rose"]],
        fell=[TokenMove.model_validate(move) for move in overall["fell"]],
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
    ids = torch.zeros(len(chosen), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, index in enumerate(chosen):
        ids[row, : len(corpus.ids[index])] = torch.tensor(corpus.ids[index])
        mask[row, : len(corpus.ids[index])] = 1
    total, rows = 0.0, 0
    with torch.inference_mode():
        together = pair.forward("finetuned", ids.to(device), mask.to(device)).logits
        for row, index in enumerate(chosen):
            length, start = len(corpus.ids[index]), corpus.content_start[index]
            alone = pair.forward(
                "finetuned", ids[row : row + 1, :length].to(device), mask[row : row + 1, :length].to(device)
            ).logits
            if alone is None or together is None:
                raise RuntimeError("a forward pass that was asked for logits gave none")
            positions = torch.arange(length, device=device).unsqueeze(0) - start
            batch = PairedBatch(
                input_ids=ids[row : row + 1, :length].to(device),
                attention_mask=mask[row : row + 1, :length].to(device),
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


FarChange = tuple[int, float, float]
Amount = Literal["none", "rounding", "small", "moderate", "large"]


def _amount(mean: float, highest: float, noise: float, found: bool) -> Amount:
    if highest == 0.0:
        return "none"
    if mean <= 3 * noise and not found:
        return "rounding"
    return "small" if mean < SMALL else "moderate" if mean < MODERATE else "large"


def _headline(
    amount: Amount, mean: float, noise: float, outliers: tuple[int, int], more: list[str], less: list[str]
) -> str:
    if amount == "none":
        return "The two models predict exactly the same on this text: every divergence is 0."
    if amount == "rounding":
        return (
            f"Mean KL {mean:.2g} nats a token is no more than rounding ({noise:.2g} between two computations of one "
            "model): no difference seen on this text."
        )
    parts = [f"The models differ by {mean:.3g} nats a token on average ({amount})"]
    for tokens, how in ((more, "more"), (less, "less")):
        if tokens:
            parts.append(
                f"the finetuned model says far {how} often: "
                f"{', '.join(json.dumps(token, ensure_ascii=False) for token in tokens[:5])}"
            )
    if outliers[0]:
        parts.append(f"{outliers[0]} of {outliers[1]} texts differ far more than the rest: read the top texts")
    if len(parts) == 1:
        parts.append("nothing stands out: the change is spread over texts and words, as after any further training")
    return "; ".join(parts) + "."


def far_changes(accumulator: KLAccumulator, special: set[int]) -> tuple[list[FarChange], list[FarChange]]:
    """Tokens (id, mean probability under base, under finetuned) that became far more and far less probable over the
    whole corpus, in every fold of texts, most changed first; special tokens apart, because every chat finetune moves
    the end of a turn."""
    rows = torch.from_numpy(np.maximum(accumulator.fold_rows, 1)).to(accumulator.base_total)
    if (accumulator.fold_rows > 0).sum() < FOLDS:
        return [], []
    found: list[list[FarChange]] = []
    base, finetuned = accumulator.base_total / rows.unsqueeze(1), accumulator.finetuned_total / rows.unsqueeze(1)
    for low, high in ((base, finetuned), (finetuned, base)):
        mean_low, mean_high = ((values * rows.unsqueeze(1)).sum(dim=0) / rows.sum() for values in (low, high))
        overall = (mean_high >= FAR_FACTOR * mean_low) & (mean_high - mean_low >= FAR_CHANGE)
        everywhere = ((high >= FAR_FACTOR / 2 * low) & (high - low >= FAR_CHANGE / 2)).all(dim=0)
        ids = (overall & everywhere).nonzero().squeeze(1)
        ids = ids[torch.argsort(mean_high[ids] - mean_low[ids], descending=True)]
        means = [(values * rows.unsqueeze(1)).sum(dim=0)[ids] / rows.sum() for values in (base, finetuned)]
        entries = zip(ids.tolist(), means[0].tolist(), means[1].tolist(), strict=True)
        found.append([entry for entry in entries if entry[0] not in special][:OVERALL])
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


class _Names:
    """Texts of tokens, decoded once each."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return self._known[token]

    def column(self, tokens: np.ndarray) -> Any:
        """Names of many tokens as a dictionary-encoded column."""
        import pyarrow as pa

        unique, indices = np.unique(tokens, return_inverse=True)
        return pa.DictionaryArray.from_arrays(
            pa.array(indices.astype(np.int32)), pa.array([self(int(token)) for token in unique])
        )


def _text(corpus: TokenizedCorpus, sample: int, pair: LoadedPair) -> str:
    return str(
        pair.tokenizer.decode(corpus.ids[sample][corpus.content_start[sample] :], clean_up_tokenization_spaces=False)
    )


def _moves(moved: Movement, names: _Names) -> dict[str, list[dict[str, Any]]]:
    def rows(direction: tuple[list[int], list[float], list[float]]) -> list[dict[str, Any]]:
        return [
            {"token": names(token), "base": base, "finetuned": finetuned}
            for token, base, finetuned in zip(*direction, strict=True)
        ]

    return {"rose": rows(moved.rose), "fell": rows(moved.fell)}


def _token_row(
    corpus: TokenizedCorpus,
    pair: LoadedPair,
    names: _Names,
    sample: int,
    position: int,
    values: dict[str, float],
    moved: Movement,
) -> TokenRow:
    ids = corpus.ids[sample]
    index = corpus.content_start[sample] + position
    return TokenRow(
        sample=sample,
        position=position,
        context=str(
            pair.tokenizer.decode(
                ids[max(0, index + 1 - CONTEXT_TOKENS) : index + 1], clean_up_tokenization_spaces=False
            )
        ),
        next_token=names(ids[index + 1]) if index + 1 < len(ids) else None,
        **_moves(moved, names),
        **values,
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
